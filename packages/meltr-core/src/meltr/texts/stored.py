"""Tables that the library datasets has saved (``save_to_disk``). Without it, they are refused with what to install."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from meltr.errors import UserError

MARKS = ("dataset_dict.json", "dataset_info.json")
"""Files that show that a folder is one: of several splits, or of one."""


def is_stored(folder: Path) -> bool:
    """Tell whether the library datasets saved this folder."""
    return any((folder / mark).is_file() for mark in MARKS)


def read(folder: Path) -> dict[str, Iterator[tuple[int, Mapping[str, Any]]]]:
    """Return the rows of every split with their numbers; classes by their names.

    Raises:
        UserError: If the library is missing, or it cannot read the folder.
    """
    try:
        import datasets
    except ImportError as error:
        message = f"{folder} was saved by the library datasets, which is not installed"
        raise UserError(message, "Install it: pip install 'meltr-core[datasets]'") from error
    try:
        found = datasets.load_from_disk(str(folder))
    except Exception as error:  # Arrow raises errors of many types.
        message = f"{folder} cannot be read as a folder of the library datasets: {type(error).__name__}: {error}"
        raise UserError(message, "Save it again with save_to_disk.") from error
    splits = dict(found) if isinstance(found, datasets.DatasetDict) else {"train": found}
    known = {"train": "train", "validation": "validation", "valid": "validation", "dev": "validation", "test": "test"}
    unknown = [name for name in splits if name not in known]
    if unknown:
        raise UserError(f"{folder} has the unknown split {unknown[0]!r}", f"Valid choices: {', '.join(known)}.")
    return {known[name]: _rows(table, datasets.ClassLabel) for name, table in splits.items()}


def _rows(table: Any, kind: type) -> Iterator[tuple[int, Mapping[str, Any]]]:
    named: dict[str, Any] = {name: feature for name, feature in table.features.items() if isinstance(feature, kind)}
    for number, row in enumerate(table, start=1):
        classes = {
            name: feature.int2str(row[name]) if isinstance(row[name], int) and row[name] >= 0 else None
            for name, feature in named.items()
        }
        yield number, {**row, **classes}
