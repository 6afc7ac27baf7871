"""Sample predictions of runs side by side, from the rows that they wrote for the test split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from meltr.context import FILE_KEYS
from meltr.errors import UserError
from meltr.files import decode
from meltr.folders.run_folder import RunFolder
from meltr.limits import UnreadableError, file_bytes, from_json

SHOWN = 8
"""Examples in a report."""

_KEYS = ("id", "index", "text", "file", "video", "image")
"""What names an example, in this order."""


@dataclass(frozen=True)
class Said:
    """What one run predicted for an example.

    Args:
        text: The answer, the class, the caption, the first video.
        right: True or False if it can be told; None for a caption or a number.
        media: Key or file of a picture that the run chose (retrieval); empty: none.
        detail: Probability or score, as text.
    """

    text: str
    right: bool | None = None
    media: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Sample:
    """One example with the predictions of all runs.

    Args:
        title: The question, the query, or the example's name.
        media: Key or file of its video or image; empty: none.
        wanted: The right answer, class, captions or video.
        said: Label of the run -> its prediction.
    """

    title: str
    media: str
    wanted: str
    said: Mapping[str, Said] = field(default_factory=dict)


def read_rows(run: Path) -> tuple[list[dict[str, Any]], str]:
    """Return the prediction rows of a run and their split; no rows if it has written none.

    Raises:
        UserError: If the file is broken.
    """
    for split in ("test", "validation"):
        path = RunFolder(run).predictions_of(split)
        if not path.is_file():
            continue
        rows = []
        for number, line in enumerate(file_bytes(path).decode("utf-8", errors="replace").splitlines(), start=1):
            try:
                row = decode(from_json(line, f"{path}, line {number}", finite=False))
            except UnreadableError as error:
                raise UserError(error.message, "It was changed or copied incompletely.") from None
            if isinstance(row, dict):
                rows.append(row)
        return rows, split
    return [], "test"


def choose(rows_of: Mapping[str, Sequence[Mapping[str, Any]]], shown: int = SHOWN) -> list[Sample]:
    """Return examples on which the runs differ, then wrong and right ones in turn.

    Args:
        rows_of: Label of the run -> its prediction rows; examples are matched by their name.
        shown: Number of examples.
    """
    samples: dict[str, Sample] = {}
    for label, rows in rows_of.items():
        for row in rows:
            key = next((f"{name}={row[name]}" for name in _KEYS if name in row), None)
            said = _said(row)
            if key is None or said is None:
                continue
            sample = samples.setdefault(key, Sample(_title(row, key), _media(row), _wanted(row), {}))
            samples[key] = Sample(sample.title, sample.media, sample.wanted, {**sample.said, label: said})
    complete = [each for each in samples.values() if len(each.said) == len(rows_of)]
    kinds = [[each.right for each in sample.said.values()] for sample in complete]
    apart = [s for s, kind in zip(complete, kinds, strict=True) if len(set(kind)) > 1]
    wrong = [s for s, kind in zip(complete, kinds, strict=True) if set(kind) == {False}]
    rest = [s for s, kind in zip(complete, kinds, strict=True) if set(kind) in ({True}, {None})]
    turns = [each for pair in zip_longest(_spread(wrong, shown), _spread(rest, shown)) for each in pair if each]
    return [*_spread(apart, shown // 2 if turns else shown), *turns][:shown]


def _spread(samples: Sequence[Sample], number: int) -> list[Sample]:
    """Return `number` samples at equal distances, so that not all come from the start of the file."""
    step = max(1, len(samples) // max(1, number))
    return list(samples[::step][:number])


def _title(row: Mapping[str, Any], key: str) -> str:
    return str(row.get("question") or row.get("text") or key.replace("=", " "))


def _media(row: Mapping[str, Any]) -> str:
    return next((str(row[name]) for name in (*FILE_KEYS, "file") if row.get(name)), "")


def _wanted(row: Mapping[str, Any]) -> str:
    references = row.get("references")
    if isinstance(references, list):
        return " / ".join(map(str, references[:3]))
    found = next((row[name] for name in ("right", "label") if row.get(name) is not None), None)
    if found is None and "first" in row:
        found = row.get("video")
    if isinstance(found, list):
        return " / ".join(map(str, found))
    return "" if found is None else str(found)


def _said(row: Mapping[str, Any]) -> Said | None:
    for name in ("probability", "score", "log_probability", "cider"):
        if isinstance(row.get(name), (int, float)):
            detail = f"{name.replace('_', ' ')} {row[name]:.3g}"
            break
    else:
        detail = ""
    if "first" in row:
        return Said(str(row["first"]), row["first"] == row.get("video"), str(row["first"]), detail)
    if "caption" in row:
        return Said(str(row["caption"]), None, "", detail)
    if "predicted" not in row:
        return None
    said, wanted = row["predicted"], row.get("right", row.get("label"))
    exact = wanted is not None and not isinstance(wanted, float)
    right = (said in wanted if isinstance(wanted, list) else said == wanted) if exact else None
    return Said(str(said), right, "", detail)
