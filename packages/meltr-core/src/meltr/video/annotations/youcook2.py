"""YouCook2: 2,000 cooking videos, divided into steps with one sentence each (Zhou, Xu, Corso, AAAI 2018).

``youcookii_annotations_trainval.json``, also ``yc2_annotations_trainval.json``: an object whose ``database`` has one
entry per video: ``subset`` (``training``, ``validation``) and ``annotations``, each with ``segment`` ([start, end] in
seconds) and ``sentence``. The sentences of the test videos are not public: papers test on the validation videos.

The data set has no transcripts. The optional ``transcripts.json`` has meltr's own format: an object that maps each
video to a list of objects with ``start``, ``end`` (seconds) and ``text``. A step gets the words of all entries that
overlap it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from meltr.video.annotations.assembly import Draft
from meltr.video.annotations.layout import AnnotationFile, DatasetLayout, MediaFolder
from meltr.video.annotations.parsing import malformed, number_of, read_json, records, text_of
from meltr.video.corpus import Item

SPLITS = {"training": "train", "validation": "test"}
"""Subset -> split."""

LONGEST = 1e9
"""Largest time in seconds; no video is longer."""

LAYOUTS = (
    DatasetLayout(
        dataset="youcook2",
        summary="YouCook2: 13,829 steps of 1,790 cooking videos, one sentence each (Zhou et al., 2018).",
        tasks=("retrieval", "captioning"),
        files=(
            AnnotationFile(
                "steps", ("youcookii_annotations_trainval.json", "yc2_annotations_trainval.json"), "steps and sentences"
            ),
            AnnotationFile("transcripts", ("transcripts.json",), "spoken words, in meltr's format", False),
        ),
        media=MediaFolder(("videos", "raw_videos", "."), "GLd3aX16zBg.mp4 (at any depth)", 1_790),
        unit="steps",
        published={"train": 10_337, "test": 3_492},
        homepage="http://youcook2.eecs.umich.edu",
        folders=(".", "annotations", "splits"),
    ),
)


def draft(layout: DatasetLayout, task: str, files: Mapping[str, Path]) -> Draft:
    """Return the steps of the training videos and of the validation videos, which form the split ``test``.

    Raises:
        UserError: If a file is malformed, or a step ends before it starts.
    """
    path = files["steps"]
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("database"), dict):
        raise malformed(path, "no object 'database' of videos in it.")
    said = _transcripts(files["transcripts"]) if "transcripts" in files else {}
    splits: dict[str, list[Item]] = {split: [] for split in SPLITS.values()}
    for video, entry in content["database"].items():
        where = f"{path}, {video}"
        if not isinstance(entry, dict):
            raise malformed(where, f"{type(entry).__name__} instead of an object.")
        split = SPLITS.get(text_of(entry, "subset", where))
        if split is None:
            continue
        for number, (place, step) in enumerate(records(entry.get("annotations"), where)):
            span = span_of(step.get("segment"), place)
            sentence = " ".join(text_of(step, "sentence", place).split())
            words = _words(said.get(video), span)
            splits[split].append(
                Item(media=video, id=f"{video}_{number}", captions=(sentence,), span=span, transcript=words)
            )
    notes = ("test is the validation split: the sentences of the test videos are not public",)
    return Draft({split: tuple(items) for split, items in splits.items()}, notes=notes)


def span_of(value: Any, where: str) -> tuple[float, float]:
    """Return [start, end] as two numbers; UserError if they are not numbers or the end is not after the start."""
    if not isinstance(value, list) or len(value) != 2 or not all(_is_time(each) for each in value):
        raise malformed(where, f"'segment' is {value!r:.60}, not [start, end] in seconds.")
    start, end = float(value[0]), float(value[1])
    if end <= start:
        raise malformed(where, f"the segment {value} does not end after its start.")
    return start, end


def _is_time(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return 0 <= value <= LONGEST


def _transcripts(path: Path) -> dict[str, list[tuple[float, float, str]]]:
    """Return video -> (start, end, words) of its transcript, in the order of the file."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise malformed(path, f"{type(content).__name__} instead of an object with a list for each video.")
    found: dict[str, list[tuple[float, float, str]]] = {}
    for video, lines in content.items():
        for where, line in records(lines, f"{path}, {video}"):
            start, end = (number_of(line, name, where) for name in ("start", "end"))
            found.setdefault(video, []).append((start, end, text_of(line, "text", where)))
    return found


def _words(said: Sequence[tuple[float, float, str]] | None, span: tuple[float, float]) -> str | None:
    """Return the words of all lines that overlap a span; None if the video has no transcript."""
    if said is None:
        return None
    return " ".join(words for start, end, words in said if start < span[1] and end > span[0]) or None
