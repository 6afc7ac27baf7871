"""Read annotations from UniVL's prepared files: YouCook2's segments, and MSR-VTT's clips split by position.

This module does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from meltr.data.safe_pickle import load_pickle
from meltr.video.annotations.assembly import Draft, first
from meltr.video.annotations.parsing import malformed, read_json, read_table, records, text_of
from meltr.video.corpus import Item

COLUMNS = ("start", "end", "text", "transcript")
"""Columns of a video in YouCook2's pickle, each with one value per segment."""

TRAIN, VALIDATION = 6_513, 497
"""Number of training and of validation videos at the beginning of MSR-VTT's file. The rest is the test set."""

NO_TRANSCRIPT = ("", "none")
"""Transcript in MSR-VTT's file for a clip without speech."""


def youcook(files: Mapping[str, Path]) -> Draft:
    """Return one item for each segment of the videos in the tables, in the order of the tables.

    Args:
        files: Role (``train``, ``test``, ``data``) -> file.

    Raises:
        UserError: If a file is malformed, the pickle names code, or it lacks a video.
    """
    content = load_pickle(files["data"])
    if not isinstance(content, dict):
        raise malformed(files["data"], f"{type(content).__name__} instead of a dict from videos to segments.")
    return Draft({split: tuple(_segments(files[split], files["data"], content)) for split in ("train", "test")})


def _segments(table: Path, path: Path, content: Mapping[Any, Any]) -> Iterator[Item]:
    for line, row in read_table(table, ("video_id", "feature_file")):
        where = f"{table}, line {line}"
        video, features = text_of(row, "video_id", where), text_of(row, "feature_file", where)
        if video not in content:
            raise malformed(where, f"{path.name} has no video {video!r}.")
        columns = _columns(content[video], f"{path}, {video!r}")
        for number, values in enumerate(zip(*columns, strict=True)):
            start, end, text, transcript = values
            place = f"{path}, {video!r}, segment {number}"
            yield Item(
                media=features,
                id=f"{video}_{number}",
                captions=(_text(text, "text", place),),
                transcript=_text(transcript, "transcript", place, empty=True) or None,
                span=_span(start, end, place),
            )


def _columns(video: Any, where: str) -> list[Sequence[Any]]:
    """Return the values of `COLUMNS`, after a check that all have the same length."""
    if not isinstance(video, dict):
        raise malformed(where, f"{type(video).__name__} instead of a dict with {', '.join(COLUMNS)}.")
    absent = [name for name in COLUMNS if name not in video]
    if absent:
        raise malformed(where, f"no {', '.join(absent)}; it has {first(list(map(str, video)))}.")
    columns = [video[name] for name in COLUMNS]
    if not all(isinstance(column, list | tuple | np.ndarray) and np.ndim(column) == 1 for column in columns):
        raise malformed(where, "a column is not a list of values.")
    counts = [len(column) for column in columns]
    if len(set(counts)) > 1:
        found = ", ".join(f"{count} {name}" for name, count in zip(COLUMNS, counts, strict=True))
        raise malformed(where, f"the columns differ in length: {found}.")
    return columns


def _span(start: Any, end: Any, where: str) -> tuple[float, float]:
    try:
        span = float(start), float(end)
    except (TypeError, ValueError):
        span = math.nan, math.nan
    if not (math.isfinite(span[1]) and 0 <= span[0] <= span[1]):
        raise malformed(where, f"{start!r:.40} to {end!r:.40} is not a span of seconds.")
    return span


def _text(value: Any, name: str, where: str, *, empty: bool = False) -> str:
    if not isinstance(value, str) or not (empty or value.strip()):
        raise malformed(where, f"{name!r} is {value!r:.60}, not text.")
    return value.strip()


class MsrvttData:
    """Content of ``MSRVTT_data.json``: the videos in their order, their captions and transcripts.

    Args:
        path: The file.

    Raises:
        UserError: If the file is malformed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        content = read_json(path)
        for name in ("videos", "sentences"):
            if not isinstance(content, dict) or name not in content:
                raise malformed(path, f"no list {name!r} in it.")
        self.videos: dict[str, str | None] = {}
        for where, record in records(content["videos"], f"{path}, videos"):
            said = str(record.get("transcript") or "").strip()
            self.videos[text_of(record, "video_id", where)] = None if said.lower() in NO_TRANSCRIPT else said
        self._captions: dict[str, list[str]] = {}
        for where, record in records(content["sentences"], f"{path}, sentences"):
            self._captions.setdefault(text_of(record, "video_id", where), []).append(text_of(record, "caption", where))

    def items(self, videos: Sequence[str]) -> tuple[Item, ...]:
        """Return one item for each of `videos`, with all its captions; raise a UserError if one has none."""
        without = [video for video in videos if video not in self._captions]
        if without:
            raise malformed(self.path, f"no caption for {len(without):,} of {len(videos):,} videos: {first(without)}")
        return tuple(
            Item(media=video, id=video, captions=tuple(self._captions[video]), transcript=self.videos.get(video))
            for video in dict.fromkeys(videos)
        )


def msrvtt_9k(files: Mapping[str, Path]) -> Draft:
    """Return the training clips of the table with all their captions, and JSFusion's test pairs."""
    table = files["train"]
    names = [text_of(row, "video_id", f"{table}, line {line}") for line, row in read_table(table, ("video_id",))]
    return Draft({"train": MsrvttData(files["data"]).items(names), "test": _pairs(files["test"])})


def msrvtt_7k(files: Mapping[str, Path]) -> Draft:
    """Return MSR-VTT's training and validation clips, by position, as the training split, and JSFusion's test pairs."""
    data = MsrvttData(files["data"])
    train = list(data.videos)[: TRAIN + VALIDATION]
    return Draft({"train": data.items(train), "test": _pairs(files["test"])})


def msrvtt_full(files: Mapping[str, Path]) -> Draft:
    """Return MSR-VTT's own training, validation and test clips, by position. MELTR's code also trains on validation."""
    data = MsrvttData(files["data"])
    videos = list(data.videos)
    parts = {
        "train": videos[:TRAIN],
        "validation": videos[TRAIN : TRAIN + VALIDATION],
        "test": videos[TRAIN + VALIDATION :],
    }
    return Draft({split: data.items(names) for split, names in parts.items()})


def _pairs(path: Path) -> tuple[Item, ...]:
    items = []
    for line, row in read_table(path, ("video_id", "sentence")):
        where = f"{path}, line {line}"
        video = text_of(row, "video_id", where)
        items.append(Item(media=video, id=row.get("key", video), captions=(text_of(row, "sentence", where),)))
    return tuple(items)


READERS: Mapping[str, Callable[[Mapping[str, Path]], Draft]] = {
    "youcook2": youcook,
    "msrvtt-7k": msrvtt_7k,
    "msrvtt-9k": msrvtt_9k,
    "msrvtt-full": msrvtt_full,
}
"""Data set -> function that reads its annotations."""
