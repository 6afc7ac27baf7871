"""Atomic writing of JSON and text files and of folders, and JSON encoding of numbers that are not finite.

JSON has no NaN and no infinity. They are written as the strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``, which
every JSON reader accepts and ``float()`` converts back; `decode` does so for a whole value.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from meltr.errors import UserError
from meltr.limits import UnreadableError, file_text, from_json

_NOT_FINITE = ("NaN", "Infinity", "-Infinity")


def encode(value: Any) -> Any:
    """Return `value` with every NaN and infinity replaced by its string, so that it is valid JSON.

    Args:
        value: Nested dicts, sequences, strings, numbers, booleans and None. Other number-like objects
            (numpy scalars, 0-dim tensors) become floats.
    """
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    number = float(value)
    if math.isnan(number):
        return "NaN"
    if math.isinf(number):
        return "Infinity" if number > 0 else "-Infinity"
    return number


def decode(value: Any) -> Any:
    """Undo `encode` on a value that ``json.loads`` returned."""
    if isinstance(value, dict):
        return {key: decode(item) for key, item in value.items()}
    if isinstance(value, list):
        return [decode(item) for item in value]
    return float(value) if isinstance(value, str) and value in _NOT_FINITE else value


def write_bytes(path: Path, content: bytes) -> None:
    """Create the folder and write a file under a temporary name, then rename it: readers see the old or the new one.

    If several processes write the same file at once, the last one wins.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8; see `write_bytes`."""
    write_bytes(path, text.encode())


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder` that takes its place at the end; after an exception nothing has changed.

    The old folder is renamed, and deleted only when the new one is in its place. If a kill comes between the two, the
    next call brings it back.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    old = folder.with_name(f".{folder.name}.replaced")
    if old.exists() and not folder.exists():
        old.rename(folder)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield beside
        beside.chmod(0o755)
        _remove(old)
        if folder.is_symlink() or folder.exists():
            folder.rename(old)
        try:
            beside.replace(folder)
        except BaseException:
            if old.is_symlink() or old.exists():
                old.rename(folder)
            raise
        _remove(old)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _remove(folder: Path) -> None:
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object; see `write_bytes`."""
    write_text(path, json.dumps(encode(content), indent=2, ensure_ascii=False) + "\n")


def read_object(path: Path) -> dict[str, Any] | None:
    """Read a JSON object that `write_json` wrote; None if there is no such file.

    Raises:
        UserError: If the file is not valid JSON, or holds anything but an object.
    """
    try:
        value = decode(from_json(file_text(path), path, finite=False))
    except FileNotFoundError:
        return None
    except UnreadableError as error:
        closed = isinstance(error.__cause__, OSError)
        hint = "Check the path and its permissions." if closed else "It was changed or copied incompletely."
        raise UserError(error.message, hint) from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, not an object", "It was not written by meltr.")
    return value


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines; see `write_bytes`."""
    write_text(path, "".join(json.dumps(encode(row), ensure_ascii=False) + "\n" for row in rows))
