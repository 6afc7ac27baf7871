"""Read JSON, JSON lines, CSV and lists; errors name the file and the line."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from meltr.errors import UserError
from meltr.limits import UnreadableError, file_text, from_json

AGAIN = "Get the file again from its official source."


def malformed(where: Path | str, problem: str, hint: str = AGAIN) -> UserError:
    """Return the error for a malformed file.

    Args:
        where: The file, with the line or record if that is known.
        problem: What is wrong, with the value found.
        hint: What to do.
    """
    return UserError(f"{where}: {problem}", hint)


def read_text(path: Path) -> str:
    """Return the content of a UTF-8 file, without a byte order mark; a ``.gz`` file is decompressed.

    Raises:
        UserError: If it cannot be read, or unpacks to too much (`meltr.limits`).
    """
    try:
        return file_text(path)
    except FileNotFoundError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.", "Check the path and its permissions.")
    except UnreadableError as error:
        raise malformed(path, error.problem)


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; UserError with the line if it is malformed."""
    text = read_text(path)
    try:
        return from_json(text, path)
    except UnreadableError as error:
        raise UserError(error.message, AGAIN)


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) for every line that is not blank; UserError if one is not a JSON object."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            value = from_json(line, where)
        except UnreadableError as error:
            raise malformed(where, error.problem, "Every line is one JSON object.")
        if not isinstance(value, dict):
            raise malformed(where, f"{type(value).__name__} instead of an object.", "Every line is one JSON object.")
        yield number, value


def read_table(path: Path, columns: Sequence[str], *, delimiter: str = ",") -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, row) of a CSV file with a header.

    Args:
        path: The file.
        columns: Required columns, in any order; other columns are kept too.
        delimiter: Separator of the fields.

    Raises:
        UserError: If a column is missing, or a row has too many or too few fields.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter)
    try:
        header = [name.strip() for name in next(reader, [])]
        absent = [name for name in columns if name not in header]
        if absent:
            found = ", ".join(header[:12]) or "nothing: the file is empty"
            raise malformed(f"{path}, line 1", f"no column {', '.join(absent)}; the header has {found}.")
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise malformed(f"{path}, line {reader.line_num}", f"{len(row)} fields instead of {len(header)}.")
            yield reader.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise malformed(f"{path}, line {reader.line_num}", f"not valid CSV: {error}.")


def read_list(path: Path) -> list[str]:
    """Return the lines of a file, stripped, without blank ones."""
    return [line.strip() for line in read_text(path).split("\n") if line.strip()]


def records(content: Any, where: Path | str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (location, record) for each object of a JSON list; UserError if it is not a list of objects."""
    if not isinstance(content, list):
        raise malformed(where, f"{type(content).__name__} instead of a list of records.")
    for number, record in enumerate(content, 1):
        place = f"{where}, record {number}"
        if not isinstance(record, dict):
            raise malformed(place, f"{type(record).__name__} instead of an object.")
        yield place, record


def text_of(record: Mapping[str, Any], name: str, where: str) -> str:
    """Return a field that must be text or a whole number, as stripped text; UserError otherwise."""
    value = record.get(name)
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if name not in record:
        raise malformed(where, f"no {name!r}; it has {', '.join(map(str, list(record)[:12])) or 'nothing'}.")
    raise malformed(where, f"{name!r} is {value!r:.60}, not text.")


def number_of(
    record: Mapping[str, Any], name: str, where: str, *, low: float = -math.inf, high: float = math.inf
) -> float:
    """Return a field that must be a finite number, or text of a number, from `low` to `high`; UserError otherwise."""
    value = record.get(name)
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if name not in record:
        raise malformed(where, f"no {name!r}; it has {', '.join(map(str, list(record)[:12])) or 'nothing'}.")
    if not math.isfinite(number):
        raise malformed(where, f"{name!r} is {value!r:.60}, not a number.")
    if not low <= number <= high:
        raise malformed(where, f"{name!r} is {number:g}, not from {low:g} to {high:g}.")
    return number
