"""CMU-MOSI: 2,199 utterances of 93 monologues about films, each with a sentiment from -3 to 3.

Zadeh, Zellers, Pincus, Morency, IEEE Intelligent Systems 2016. Two formats are read: ``index.tsv`` (or
``index.tsv.gz``), tab separated with the columns ``video``, ``segment``, ``intensity``, ``fold_standard`` (``train``,
``valid``, ``test``) and ``words``; and ``label.csv`` of the public repository thuiar/MMSA: ``video_id``, ``clip_id``,
``text``, ``label``, ``mode``. Utterance 1 of the video 03bSnISJMiM is ``03bSnISJMiM_1.mp4``, or, beside ``label.csv``,
``Raw/03bSnISJMiM/1.mp4``. In the standard folds, no speaker occurs in two folds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from meltr.errors import did_you_mean
from meltr.video.annotations.assembly import Draft
from meltr.video.annotations.layout import AnnotationFile, DatasetLayout, MediaFolder
from meltr.video.annotations.parsing import malformed, number_of, read_table, text_of
from meltr.video.corpus import STRONGEST, Item

SPLITS = {"train": "train", "valid": "validation", "validation": "validation", "dev": "validation", "test": "test"}
"""Name of a fold in the file -> split."""

COLUMNS = {
    "index": ("video", "segment", "words", "intensity", "fold_standard"),
    "label": ("video_id", "clip_id", "text", "label", "mode"),
}
"""Format -> its columns: video, utterance, words, sentiment, fold."""

LAYOUTS = (
    DatasetLayout(
        dataset="cmu-mosi",
        summary="CMU-MOSI: 2,199 utterances about films, each with a sentiment from -3 to 3 (Zadeh et al., 2016).",
        tasks=("sentiment",),
        files=(AnnotationFile("labels", ("index.tsv", "index.tsv.gz", "label.csv"), "words, sentiment and fold"),),
        media=MediaFolder(("Segmented", "Video/Segmented", "videos", "."), "03bSnISJMiM_1.mp4 (at any depth)", 2_199),
        unit="utterances",
        published={"train": 1_284, "validation": 229, "test": 686},
        homepage="http://multicomp.cs.cmu.edu/resources/cmu-mosi-dataset",
        folders=(".", "Transcript", "labels"),
    ),
)


def draft(layout: DatasetLayout, task: str, files: Mapping[str, Path]) -> Draft:
    """Return the utterances of the three folds.

    Raises:
        UserError: If the file is malformed, a sentiment lies outside -3 to 3, or an utterance occurs twice.
    """
    path = files["labels"]
    form = "label" if path.suffix == ".csv" else "index"
    names = COLUMNS[form]
    splits: dict[str, list[Item]] = {split: [] for split in ("train", "validation", "test")}
    paths: dict[str, Path] = {}
    seen: dict[str, int] = {}
    for line, row in read_table(path, names, delimiter="," if form == "label" else "\t"):
        where = f"{path}, line {line}"
        video, number, fold = (text_of(row, name, where) for name in (names[0], names[1], names[4]))
        key = f"{video}_{number}"
        if fold not in SPLITS:
            raise malformed(where, f"unknown fold {fold!r} in {names[4]}.", did_you_mean(fold, SPLITS))
        if key in seen:
            raise malformed(where, f"the utterance {key} already occurs in line {seen[key]}.")
        seen[key] = line
        score = number_of(row, names[3], where, low=-STRONGEST, high=STRONGEST)
        words = " ".join(row[names[2]].split()) or None
        splits[SPLITS[fold]].append(Item(media=key, id=key, transcript=words, score=score))
        paths[key] = path.parent / "Raw" / video / f"{number}.mp4"
    raw = form == "label" and any(place.is_file() for place in paths.values())
    return Draft({split: tuple(items) for split, items in splits.items() if items}, paths=paths if raw else None)
