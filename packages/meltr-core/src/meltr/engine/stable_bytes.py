"""The same weights give the same file: safetensors writes its metadata in an order that changes from call to call."""

from __future__ import annotations

import json
from pathlib import Path

_LENGTH = 8
"""Bytes at the start of a file that hold the length of its header, little-endian."""


def sort_metadata(path: Path) -> None:
    """Sort the metadata in the header of a safetensors file by name, in place.

    Sorting does not change the length of the header, so the tensors stay where they are. Their own order depends on
    types and names alone.

    Args:
        path: A file that safetensors has just written.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(_LENGTH), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        written = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(written) > length:
            raise ValueError(f"the header of {path} takes {len(written)} bytes instead of {length}")
        file.seek(_LENGTH)
        file.write(written.ljust(length))
