"""Tables of texts: ``train``, and if there are such files ``validation`` and ``test``, as CSV, TSV or JSON lines."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from meltr.errors import UserError
from meltr.texts.corpus import TextCorpus, TextItem

SPLITS = ("train", "validation", "test")
ENDINGS = (".csv", ".tsv", ".jsonl")
TEXT, LABEL = "text", "label"

LAYOUT = """\
train.csv            the columns text and label in the first line, one text per further line;
                     or train.tsv, or train.jsonl with {"text": ..., "label": ...} per line
validation.csv       optional; without it a part of train is set aside
test.csv             optional
"""

FIELD_LIMIT = 2**24
"""Most characters of one field of a CSV file."""


def read(folder: Path) -> TextCorpus:
    """Read the tables of a folder.

    Raises:
        UserError: If the folder or its training table is missing, a table is not valid, or a text or label is empty.
    """
    if not folder.is_dir():
        raise UserError(f"--data-root {folder}: there is no such folder", f"It must hold:\n{LAYOUT}")
    splits: dict[str, tuple[TextItem, ...]] = {}
    for split in SPLITS:
        found = [folder / f"{split}{ending}" for ending in ENDINGS if (folder / f"{split}{ending}").is_file()]
        if len(found) > 1:
            names = " and ".join(file.name for file in found)
            raise UserError(f"{folder} has {names}; which of them holds the split?", "Remove the others.")
        if found:
            splits[split] = tuple(_items(found[0]))
    if "train" not in splits:
        raise UserError(f"{folder} has no table of training texts", f"It must hold:\n{LAYOUT}")
    for split, items in splits.items():
        if not items:
            raise UserError(f"{folder}: the table {split!r} has no text", "Remove it, or add texts.")
    classes = tuple(sorted({item.label for item in splits["train"]}))
    if len(classes) < 2:
        raise UserError(f"all training texts of {folder} have the label {classes[0]!r}", "Give at least two classes.")
    return TextCorpus(splits, classes)


def _items(file: Path) -> Iterator[TextItem]:
    """Yield the texts of a table."""
    for number, row in _rows(file):
        for name in (TEXT, LABEL):
            value = row.get(name)
            if value is None or isinstance(value, (dict, list)) or not str(value).strip():
                found = (
                    f"has no {name}"
                    if name not in row
                    else f"has an empty {name}"
                    if not value
                    else f"{name} = {value}"
                )
                raise UserError(f"{file}, line {number}: {found}", f"Every line needs {TEXT} and {LABEL}.")
        others = {name: str(value) for name, value in row.items() if name not in (TEXT, LABEL) and value is not None}
        yield TextItem(str(row[TEXT]).strip(), str(row[LABEL]).strip(), f"{file.name}:{number}", others)


def _rows(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the lines of a table with their numbers."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            yield from _json_lines(file, lines) if file.suffix == ".jsonl" else _csv_lines(file, lines)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}", "It must be a text file in UTF-8.") from error


def _json_lines(file: Path, lines: Any) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(
                    f"{file}, line {number} is not JSON: {error}", 'Write {"text": "...", "label": "..."}.'
                ) from error
            if not isinstance(row, dict):
                raise UserError(
                    f"{file}, line {number} is a {type(row).__name__}", 'Write {"text": "...", "label": "..."}.'
                )
            yield number, row


def _csv_lines(file: Path, lines: Any) -> Iterator[tuple[int, Mapping[str, Any]]]:
    csv.field_size_limit(FIELD_LIMIT)
    reader = csv.DictReader(lines, delimiter="\t" if file.suffix == ".tsv" else ",", restkey="", strict=True)
    try:
        missing = [name for name in (TEXT, LABEL) if name not in (reader.fieldnames or ())]
        if missing:
            found = ", ".join(reader.fieldnames or ()) or "nothing"
            raise UserError(
                f"{file}: the first line has no column {missing[0]!r}; it has: {found}", "Name the columns there."
            )
        for row in reader:
            if "" in row:
                hint = 'Put a text that contains the separator in double quotes: "good, but long",positive'
                raise UserError(f"{file}, line {reader.line_num} has more fields than the first line", hint)
            yield reader.line_num, row
    except csv.Error as error:
        raise UserError(f"{file}, line {reader.line_num}: {error}", "Is it a table of that format?") from error
