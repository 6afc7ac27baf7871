"""Tables of texts as CSV, TSV or JSON lines: one for each split, or a single one with a column that names the split."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from meltr.errors import UserError, did_you_mean
from meltr.limits import UnreadableError, from_json
from meltr.texts import stored
from meltr.texts.corpus import TextCorpus, TextItem
from meltr.texts.names import ID, LABEL, SPLIT, TARGET, TEXT

SPLITS = ("train", "validation", "test")
OTHER_NAMES = {"val": "validation", "valid": "validation", "dev": "validation"}
"""Other values of the column ``split``."""

ENDINGS = (".csv", ".tsv", ".jsonl")

LAYOUT = """\
train.csv            the columns text and label (text-to-text: text and target) in the first line, one text per further
                     line; or train.tsv, or train.jsonl with {"text": ..., "label": ...} per line
validation.csv       optional; without it a part of train is set aside
test.csv             optional
manifest.jsonl       instead: all splits in one file, which says "split": "train" (validation, test) in every line;
                     or manifest.csv, manifest.tsv. --data-root may also name such a file
dataset_dict.json    instead: a folder that the library datasets has saved (save_to_disk)
"""

FIELD_LIMIT = 2**24
"""Most characters of one field of a CSV file."""

Row = tuple[int, Mapping[str, Any]]
"""The number of a line, and its cells by the names of their columns."""


def read(root: Path, *, answer: str = LABEL) -> TextCorpus:
    """Read the tables of a folder, or a single table.

    Args:
        root: The folder, or the file with all splits.
        answer: The column that every line needs besides its text: ``label`` or ``target``.

    Raises:
        UserError: If the training texts are missing, a table is not valid, or a text or an answer is empty.
    """
    if root.is_file():
        splits = _by_split(root, answer)
    elif not root.is_dir():
        raise UserError(f"--data-root {root}: there is no such folder", f"It must hold:\n{LAYOUT}")
    elif stored.is_stored(root):
        splits = {name: tuple(_items(Path(name), rows, answer)) for name, rows in stored.read(root).items()}
    else:
        splits = _of_folder(root, answer)
    if "train" not in splits:
        raise UserError(f"{root} has no table of training texts", f"It must hold:\n{LAYOUT}")
    for split, items in splits.items():
        if not items:
            raise UserError(f"{root}: the table {split!r} has no text", "Remove it, or add texts.")
    if answer == TARGET:
        return TextCorpus(splits, ())
    classes = tuple(sorted({item.label for item in splits["train"]}))
    if len(classes) < 2:
        raise UserError(f"all training texts of {root} have the label {classes[0]!r}", "Give at least two classes.")
    return TextCorpus(splits, classes)


def _of_folder(folder: Path, answer: str) -> dict[str, tuple[TextItem, ...]]:
    """Return the texts of a table for each split, or of a single table."""
    whole = _only(folder, "manifest")
    found = {split: file for split in SPLITS if (file := _only(folder, split)) is not None}
    if whole is not None and found:
        names = " and ".join(file.name for file in (whole, *found.values()))
        raise UserError(f"{folder} has {names}; which of them counts?", "Remove the others.")
    if whole is not None:
        return _by_split(whole, answer)
    return {split: tuple(_items(file, _rows(file, (TEXT, answer)), answer)) for split, file in found.items()}


def _only(folder: Path, stem: str) -> Path | None:
    """Return the one table of this name; UserError if there are several."""
    found = [folder / f"{stem}{ending}" for ending in ENDINGS if (folder / f"{stem}{ending}").is_file()]
    if len(found) > 1:
        names = " and ".join(file.name for file in found)
        raise UserError(f"{folder} has {names}; which of them holds the split?", "Remove the others.")
    return found[0] if found else None


def _by_split(file: Path, answer: str) -> dict[str, tuple[TextItem, ...]]:
    """Return the texts of a table with all splits; without a column ``split`` they are all training texts."""
    if file.suffix not in ENDINGS:
        raise UserError(f"--data-root {file} is not a table", f"It must end in one of: {', '.join(ENDINGS)}.")
    rows: dict[str, list[Row]] = {}
    named = None
    for number, row in _rows(file, (TEXT, answer)):
        if named is None:
            named = SPLIT in row
        given = row.get(SPLIT, "train") if named or SPLIT in row else "train"
        split = OTHER_NAMES.get(str(given), str(given))
        if split not in SPLITS or named != (SPLIT in row):
            found = f"split = {given!r}" if SPLIT in row else "has no split, but other lines have"
            hint = did_you_mean(str(given), (*SPLITS, *OTHER_NAMES))
            raise UserError(f"{file}, line {number}: {found}", hint)
        rows.setdefault(split, []).append((number, {name: value for name, value in row.items() if name != SPLIT}))
    return {split: tuple(_items(file, rows[split], answer)) for split in SPLITS if split in rows}


def _items(file: Path, rows: Iterable[Row], answer: str) -> Iterator[TextItem]:
    """Yield the texts of a table."""
    for number, row in rows:
        for name in (TEXT, answer):
            value = row.get(name)
            if value is None or isinstance(value, (dict, list)) or not str(value).strip():
                found = f"{name} = {value}" if value else f"has an empty {name}" if name in row else f"has no {name}"
                raise UserError(f"{file}, line {number}: {found}", f"Every line needs {TEXT} and {answer}.")
        others = {
            name: str(value).strip()
            for name, value in row.items()
            if name not in (TEXT, answer, ID) and value is not None and str(value).strip()
        }
        own = {answer: str(row[answer]).strip()}
        yield TextItem(
            str(row[TEXT]).strip(), own.get(LABEL, ""), f"{file.name}:{number}", others, target=own.get(TARGET, "")
        )


def _rows(file: Path, needs: tuple[str, str]) -> Iterator[Row]:
    """Yield the lines of a table with their numbers."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            yield from _json_lines(file, lines, needs) if file.suffix == ".jsonl" else _csv_lines(file, lines, needs)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}", "It must be a text file in UTF-8.") from error


def _json_lines(file: Path, lines: Any, needs: tuple[str, str]) -> Iterator[Row]:
    hint = f'Write {{"{needs[0]}": "...", "{needs[1]}": "..."}}.'
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                row = from_json(line, file)
            except UnreadableError as error:
                problem = error.problem.removeprefix("not valid JSON: ")
                raise UserError(f"{file}, line {number} is not JSON: {problem}", hint) from error
            if not isinstance(row, dict):
                raise UserError(f"{file}, line {number} is a {type(row).__name__}", hint)
            yield number, row


def _csv_lines(file: Path, lines: Any, needs: tuple[str, str]) -> Iterator[Row]:
    csv.field_size_limit(FIELD_LIMIT)
    reader = csv.DictReader(lines, delimiter="\t" if file.suffix == ".tsv" else ",", restkey="", strict=True)
    try:
        missing = [name for name in needs if name not in (reader.fieldnames or ())]
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
