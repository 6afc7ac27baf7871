"""The manifest of a checkpoint: which files belong to it, with their sizes and checksums.

``manifest.json`` is the last file that is written before a checkpoint gets its name::

    {"format": 1, "step": 500, "files": {"backbone.safetensors": {"bytes": 1234, "sha256": "..."}, ...}}

The checksums are those of ``sha256sum``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from meltr.errors import UserError
from meltr.files import read_object, write_json

NAME = "manifest.json"
_FORMAT = 1


def write_manifest(folder: Path, step: int) -> None:
    """Write the manifest of all files that are in a checkpoint's folder now.

    Args:
        folder: The folder of the checkpoint.
        step: Inner steps taken before it.
    """
    files = {
        str(path.relative_to(folder).as_posix()): {"bytes": path.stat().st_size, "sha256": checksum(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != NAME
    }
    write_json(folder / NAME, {"format": _FORMAT, "step": step, "files": files})


def has_manifest(folder: Path) -> bool:
    """Return whether a checkpoint has a manifest; those of earlier versions have none."""
    return (folder / NAME).exists()


def fault(folder: Path, step: int, only: tuple[str, ...] | None = None) -> str | None:
    """Return in words how a checkpoint differs from its manifest; None if it does not.

    Args:
        folder: The folder of the checkpoint.
        step: The step in its name.
        only: Check only the files with one of these names, and those in folders with one of these names; None: all.
    """
    try:
        content = read_object(folder / NAME)
    except (UserError, OSError) as error:
        return f"{NAME} cannot be read ({_reason(error)})"
    if content is None:
        return f"{NAME} is missing"
    files = content.get("files")
    if content.get("format") != _FORMAT or not isinstance(files, dict) or not files:
        return f"{NAME} is not a manifest of this version of meltr"
    if content.get("step") != step:
        return f"{NAME} is of step {content.get('step')}"
    for name, expected in files.items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            return f"{NAME} names a file outside the checkpoint: {name}"
        if only is not None and name.split("/")[0] not in only:
            continue
        found = _file_fault(folder / name, expected)
        if found is not None:
            return f"{name} {found}"
    return None


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _file_fault(path: Path, expected: Any) -> str | None:
    if not isinstance(expected, Mapping):
        return f"has no entry in {NAME}"
    try:
        if not path.is_file():
            return "is missing"
        size = path.stat().st_size
        if size != expected.get("bytes"):
            return f"has {size} bytes instead of {expected.get('bytes')}"
        if checksum(path) != expected.get("sha256"):
            return f"has another checksum than in {NAME}"
    except OSError as error:
        return f"cannot be read ({_reason(error)})"
    return None


def _reason(error: BaseException) -> str:
    first: BaseException | None = error
    while first is not None and not isinstance(first, OSError):
        first = first.__cause__
    return (getattr(first, "strerror", None) or str(error)).splitlines()[0]
