"""Truncated and damaged media files, found from their headers alone: sizes, and the chain of Matroska elements."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

_ISO_FIRST = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp"}
_ISO_NEEDED = {b"moov", b"mdat", b"moof"}
_EBML_HEADER, _MATROSKA_SEGMENT = 0x1A45DFA3, 0x18538067
_CLUSTER = 0x1F43B675
_EVERYWHERE = {0xEC, 0xBF}
"""Void and CRC-32, which may stand in any element."""
_IN_SEGMENT = {0x114D9B74, 0x1549A966, _CLUSTER, 0x1654AE6B, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367}
"""SeekHead, Info, Cluster, Tracks, Cues, Attachments, Chapters, Tags."""
_IN_CLUSTER = {0xE7, 0x5854, 0xA7, 0xAB, 0xA3, 0xA0, 0xAF}
"""Timestamp, SilentTracks, Position, PrevSize, SimpleBlock, BlockGroup, EncryptedBlock."""


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


def damaged_at(path: Path) -> int | None:
    """Return the first byte where the chain of elements of a Matroska or GIF file breaks; None if it does not.

    Decoders pass over broken elements without a word, and with them over frames. Reads the header of each element.
    Files of other formats are not examined.

    Raises:
        OSError: If the file cannot be read.
    """
    with path.open("rb") as stream:
        mark = stream.read(4)
        if mark == b"GIF8":
            return _broken_gif(stream)
        if int.from_bytes(mark, "big") != _EBML_HEADER:
            return None
        end = os.fstat(stream.fileno()).st_size
        header = _vint(stream)
        if header is None:
            return 4
        start = stream.seek(header, os.SEEK_CUR)
        if int.from_bytes(stream.read(4), "big") != _MATROSKA_SEGMENT:
            return start
        size = _vint(stream)
        stop = end if size is None else min(end, stream.tell() + size)
        return _broken_chain(stream, stop)


def _broken_chain(stream: BinaryIO, stop: int) -> int | None:
    """Return the first byte in a Segment's content, from the current position to `stop`, that begins no element."""
    position, cluster_end = stream.tell(), 0
    while position < stop:
        stream.seek(position)
        identity = _identity(stream)
        size = _vint(stream)
        content = stream.tell()
        in_cluster = position < cluster_end and identity in _IN_CLUSTER
        if not in_cluster and identity not in _IN_SEGMENT and identity not in _EVERYWHERE:
            return position
        limit = cluster_end if in_cluster and cluster_end < stop else stop
        if identity == _CLUSTER:
            # Of unknown size, as in a recorded stream: the cluster ends at the next element of a segment.
            cluster_end = stop if size is None else content + size
            if cluster_end > stop:
                return position
            position = content
            continue
        if size is None or content + size > limit:
            return position
        position = content + size
    return None


def _broken_gif(stream: BinaryIO) -> int | None:
    """Return the first byte of a GIF that begins no block (GIF89a, section 15 and on); None if there is none."""
    stream.seek(6)
    screen = stream.read(7)
    if len(screen) < 7:
        return 6
    _skip_colours(stream, screen[4])
    while True:
        position = stream.tell()
        mark = stream.read(1)
        if mark in (b"", b";"):  # some writers leave the trailer out
            return None
        if mark == b"\0":
            continue
        if mark == b",":
            descriptor = stream.read(9)
            if len(descriptor) < 9:
                return position
            _skip_colours(stream, descriptor[8])
            stream.seek(1, os.SEEK_CUR)
        elif mark == b"!":
            stream.seek(1, os.SEEK_CUR)
        else:
            return position
        while (length := stream.read(1)) not in (b"", b"\0"):
            stream.seek(length[0], os.SEEK_CUR)


def _skip_colours(stream: BinaryIO, flags: int) -> None:
    if flags & 0x80:
        stream.seek(3 << (flags & 7) + 1, os.SEEK_CUR)


def _identity(stream: BinaryIO) -> int:
    """Read the identity of an element; 0 if there is none."""
    first = stream.read(1)
    if not first or first[0] < 0x10:
        return 0
    return int.from_bytes(first + stream.read(8 - first[0].bit_length()), "big")


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
