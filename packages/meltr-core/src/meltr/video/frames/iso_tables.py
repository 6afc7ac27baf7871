"""The sample tables of MP4, MOV and 3GP: the lists of where each frame lies and when it is shown have to agree.

FFmpeg takes what lies in all of them, so that a damaged table gives a shorter film without a word.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO

MOST = 2**26
"""Size of the largest movie box that is read; that of a film of a day has about 30 MiB."""

_PATH = (b"trak", b"mdia", b"minf", b"stbl")


def broken_table(path: Path) -> str | None:
    """Return which sample table of a film disagrees with the others; None if none does, or if it has no such tables.

    Files in fragments, whose tables are empty, and files of other formats are not examined.

    Raises:
        OSError: If the file cannot be read.
    """
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        movie = _movie(stream, size)
    if movie is None or any(name == b"mvex" for name, _ in _boxes(movie)):
        return None
    for track in _inside(movie, _PATH[:1]):
        if any(handler[8:12] == b"vide" for handler in _inside(track, (b"mdia", b"hdlr"))):
            for table in _inside(track, _PATH[1:]):
                found = _disagreement(dict(_boxes(table)), size)
                if found is not None:
                    return found
    return None


def _movie(stream: BinaryIO, end: int) -> bytes | None:
    """Return the content of the box ``moov``; None if there is none, or it is too large."""
    position = 0
    while position + 8 <= end:
        stream.seek(position)
        head = stream.read(16)
        size, header = int.from_bytes(head[:4], "big"), 8
        if size == 1:
            size, header = int.from_bytes(head[8:16], "big"), 16
        if size < header:
            return None
        if head[4:8] == b"moov":
            stream.seek(position + header)
            return stream.read(size - header) if size <= MOST else None
        position += size
    return None


def _boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and content of the boxes in a box (ISO/IEC 14496-12, section 4.2)."""
    position = 0
    while position + 8 <= len(content):
        size = int.from_bytes(content[position : position + 4], "big")
        if size < 8:
            return
        yield content[position + 4 : position + 8], content[position + 8 : position + size]
        position += size


def _inside(content: bytes, names: tuple[bytes, ...]) -> Iterator[bytes]:
    """Yield the contents of the boxes at a path of names."""
    for name, inside in _boxes(content):
        if name == names[0]:
            yield from _inside(inside, names[1:]) if len(names) > 1 else (inside,)


def _disagreement(tables: dict[bytes, bytes], size: int) -> str | None:
    """Return the name of a table that counts or places other frames than the rest (sections 8.6.1, 8.7.3 to 8.7.5).

    Args:
        tables: The boxes of the sample table.
        size: Of the file.
    """
    if b"stsz" not in tables or b"stts" not in tables or b"stsc" not in tables:
        return None
    sizes, frames = tables[b"stsz"], _number(tables[b"stsz"], 8)
    same = _number(sizes, 4)
    if same == 0 and frames * 4 > len(sizes) - 12:
        return "stsz"
    if frames == 0:
        return None
    if sum(count for count, _ in _rows(tables[b"stts"], 2)) != frames:
        return "stts"
    wide = b"co64" in tables
    chunks = [_join(row) for row in _rows(tables.get(b"co64", tables.get(b"stco", b"")), 2 if wide else 1)]
    if any(chunk >= size for chunk in chunks):
        return "co64" if wide else "stco"
    groups = [row[:2] for row in _rows(tables[b"stsc"], 3)]
    ends = [*(first for first, _ in groups[1:]), len(chunks) + 1]
    placed = sum((end - first) * each for (first, each), end in zip(groups, ends, strict=True))
    if placed != frames:
        return "stsc"
    counts = [each for (first, each), end in zip(groups, ends, strict=True) for _ in range(end - first)]
    lengths = iter([same] * frames if same else [row[0] for row in _rows(sizes[4:], 1)])
    filled = sorted((chunk, chunk + sum(islice(lengths, count))) for chunk, count in zip(chunks, counts, strict=True))
    starts = [*(start for start, _ in filled[1:]), size]
    return "stsz" if any(end > start for (_, end), start in zip(filled, starts, strict=True)) else None


def _rows(table: bytes, width: int) -> list[tuple[int, ...]]:
    """Return the rows of a table of 32-bit numbers, which begins with flags and their count."""
    count = min(_number(table, 4), max(0, len(table) - 8) // (4 * width))
    numbers = memoryview(table)[8 : 8 + 4 * width * count]
    flat = [int.from_bytes(numbers[at : at + 4], "big") for at in range(0, len(numbers), 4)]
    return [tuple(flat[at : at + width]) for at in range(0, len(flat), width)]


def _join(row: tuple[int, ...]) -> int:
    return row[0] if len(row) == 1 else row[0] << 32 | row[1]


def _number(content: bytes, at: int) -> int:
    return int.from_bytes(content[at : at + 4], "big")
