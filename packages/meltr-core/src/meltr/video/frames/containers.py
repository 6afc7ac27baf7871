"""Detection of truncated media files: their headers announce more bytes than exist. Reads headers only."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

_ISO_FIRST = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp"}
_ISO_NEEDED = {b"moov", b"mdat", b"moof"}
_EBML_HEADER, _MATROSKA_SEGMENT = 0x1A45DFA3, 0x18538067


def missing_bytes(path: Path) -> int:
    """Return the number of bytes missing at the end of a file; 0 if none, or if the format does not state its length.

    Supports ISO media (MP4, MOV), RIFF (AVI, WebP), Matroska (MKV, WebM), and GIF as far as its last bytes allow.

    Raises:
        OSError: If the file cannot be read.
    """
    with path.open("rb") as stream:
        actual = os.fstat(stream.fileno()).st_size
        head = stream.read(8)
        if head[:4] == b"RIFF":
            end = _riff_end(head)
        elif head[4:8] in _ISO_FIRST:
            end = _iso_end(stream, actual)
        elif int.from_bytes(head[:4], "big") == _EBML_HEADER:
            end = _matroska_end(stream)
        elif head[:4] == b"GIF8":
            end = _gif_end(stream, actual)
        else:
            return 0
    return max(0, end - actual)


def _riff_end(head: bytes) -> int:
    """Return the end of the first RIFF chunk; 0 if its size is 0 or the maximum, as some writers leave it."""
    size = int.from_bytes(head[4:8], "little")
    return 0 if size in (0, 0xFFFFFFFF) else size + 8


def _iso_end(stream: BinaryIO, actual: int) -> int:
    """Return the end of the last top-level box needed for playback (ISO/IEC 14496-12, section 4.2)."""
    position = end = 0
    while position + 8 <= actual:
        stream.seek(position)
        header = stream.read(16)
        size = int.from_bytes(header[:4], "big")
        if size == 1:
            size = int.from_bytes(header[8:16], "big")
        if size < 8:  # 0 means "up to the end of the file"; any other value is not a box
            break
        position += size
        if header[4:8] in _ISO_NEEDED:
            end = position
    return end


def _matroska_end(stream: BinaryIO) -> int:
    """Return the end of the Segment element, which follows the EBML header (RFC 8794)."""
    stream.seek(4)
    header = _vint(stream)
    if header is None:
        return 0
    stream.seek(header, os.SEEK_CUR)
    if int.from_bytes(stream.read(4), "big") != _MATROSKA_SEGMENT:
        return 0
    size = _vint(stream)
    return 0 if size is None else stream.tell() + size


def _gif_end(stream: BinaryIO, actual: int) -> int:
    """Return `actual` if the file ends with the trailer or with the end of a block; otherwise one byte more."""
    stream.seek(max(0, actual - 64))
    tail = stream.read()
    return actual if tail.endswith(b"\0") or tail.rstrip().endswith(b";") else actual + 1


def _vint(stream: BinaryIO) -> int | None:
    """Read a variable-size integer; None if it is marked as unknown or is broken."""
    first = stream.read(1)
    if not first or first[0] == 0:
        return None
    length = 9 - first[0].bit_length()
    value = int.from_bytes(bytes([first[0] & (0xFF >> length)]) + stream.read(length - 1), "big")
    return None if value == (1 << 7 * length) - 1 else value
