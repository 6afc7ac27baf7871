"""Fills a frame cache with several processes, one shard at a time, so that it can continue after an interruption."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Container, Iterator, Mapping
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from meltr.errors import UserError
from meltr.files import write_json, write_lines
from meltr.video.extraction import FillReport, Progress, attempt, check_same, fill
from meltr.video.frame_cache.layout import (
    FAILED,
    HEADER,
    CacheSettings,
    changed,
    header,
    named,
    read_entries,
    read_failed,
    read_settings,
    shard_path,
)
from meltr.video.frames.media import decode, require
from meltr.video.frames.pictures import Picture, shrink_short_side
from meltr.video.frames.sampling import sampler_named

SHARD_SIZE = 256
"""Videos per shard."""


class Encoded(NamedTuple):
    """Frames of a video as they are stored.

    Args:
        pictures: Each different frame once.
        order: For each requested frame, its index in `pictures`.
        shape: Height and width.
    """

    pictures: tuple[bytes, ...]
    order: tuple[int, ...]
    shape: tuple[int, int]


def fill_cache(
    media: Mapping[str, Path],
    folder: Path,
    settings: CacheSettings,
    *,
    workers: int = 0,
    shard_size: int = SHARD_SIZE,
    progress: Progress | None = None,
) -> FillReport:
    """Decode the videos that a cache does not hold yet, and add them.

    An interrupted call loses the shard that was being written. Files that cannot be decoded are listed in
    ``failed.jsonl``, and the next call tries them again. The result does not depend on `workers` or on interruptions.

    Args:
        media: Key -> file; one cache may hold files of several data sets.
        folder: The cache; created if missing.
        settings: How frames are made.
        workers: Number of decoding processes; 0: this process. With worker processes, a crash affects only one video.
        shard_size: Videos per shard.
        progress: Called after every video.

    Raises:
        UserError: If the folder holds something else, a cache with other settings or from other files, or another
            process is filling it; if no file can be decoded; or if PyAV or Pillow is missing.
    """
    for library in ("av", "PIL.Image"):
        require(library)
    _prepare(folder, settings)
    with _locked(folder):
        done = read_entries(folder)
        other = list(changed(media, done))
        if other:
            raise UserError(
                f"The cache {folder} was made from other files: {named(other)} ({len(other):,} of {len(media):,}) have "
                "a different name or size now.",
                "Choose another folder for the cache, or delete this one.",
            )
        shards = _Shards(folder, media, done=done, size=shard_size)
        encode = partial(_encode, settings=settings)
        make = partial(attempt, work=encode, workers=workers)
        return fill(dict(sorted(media.items())), shards, make, progress=progress)


def _prepare(folder: Path, settings: CacheSettings) -> None:
    """Create the folder, or check that it is a cache with these settings."""
    if not (folder / HEADER).exists():
        if folder.exists() and (not folder.is_dir() or _visible(folder)):
            raise UserError(f"{folder} is neither empty nor a frame cache.", "Choose another folder.")
        write_json(folder / HEADER, header(settings))
    check_same(folder, read_settings(folder), settings)


def _visible(folder: Path) -> list[Path]:
    """Return the content of `folder`, except files that an interrupted process may have left."""
    return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock the cache against other processes, if the system supports it; the lock ends with the process."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with (folder / ".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"Another process is filling the cache {folder}.", "Wait until it has ended.") from None
        yield


def _encode(key: str, path: Path, settings: CacheSettings) -> Encoded:
    """Return the frames of a file in stored form."""
    sampler = sampler_named(settings.sampler)
    numbers: list[int] = []

    def choose(total: int) -> list[int]:
        """Select each frame once."""
        numbers[:] = sampler(total, settings.frames)
        return sorted(set(numbers))

    frames, indices, _ = decode(path, choose)
    pictures = [shrink_short_side(frame, settings.size) for frame in frames]
    stored = tuple(_as_bytes(picture, settings.quality) for picture in pictures)
    height, width, _ = pictures[0].shape
    return Encoded(stored, tuple(indices.index(number) for number in numbers), (height, width))


def _as_bytes(picture: Picture, quality: int | None) -> bytes:
    if quality is None:
        return picture.tobytes()
    buffer = io.BytesIO()
    require("PIL.Image").fromarray(picture).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


class _Shards:
    """The shards of a cache, written one after the other.

    Args:
        folder: The cache.
        media: Key -> file of the videos to add.
        done: Keys in finished shards.
        size: Videos per shard.
    """

    def __init__(self, folder: Path, media: Mapping[str, Path], *, done: Container[str], size: int) -> None:
        self._folder, self._media, self._done, self._size = folder, media, done, size
        self._failed = {key: reason for key, reason in read_failed(folder).items() if key not in media}
        self._number = next(number for number in count() if not shard_path(folder, number, "json").exists())
        self._videos: dict[str, dict[str, Any]] = {}
        self._position = 0
        self._partial = folder / ".shard.partial"
        self._stream = self._partial.open("wb")

    def __contains__(self, key: str) -> bool:
        return key in self._done

    def close(self, *, complete: bool) -> None:
        """Finish the last shard and list the failures; after an interruption, drop the unfinished shard."""
        try:
            if complete:
                self._finish()
                rows = ({"key": key, "reason": self._failed[key]} for key in sorted(self._failed))
                write_lines(self._folder / FAILED, rows)
        finally:
            self._stream.close()
            self._partial.unlink(missing_ok=True)

    def fail(self, key: str, reason: str) -> None:
        """Record why a file could not be decoded."""
        self._failed[key] = reason

    def add(self, key: str, encoded: Encoded) -> None:
        """Append a video; finish the shard if it is full."""
        path = self._media[key]
        spans = []
        for picture in encoded.pictures:
            spans.append((self._position, self._position + len(picture)))
            self._stream.write(picture)
            self._position += len(picture)
        self._videos[key] = {
            "file": path.name,
            "bytes": path.stat().st_size,
            "shape": encoded.shape,
            "spans": [spans[place] for place in encoded.order],
        }
        if len(self._videos) >= self._size:
            self._finish()

    def _finish(self) -> None:
        """Write the index of the shard, and start the next one."""
        if not self._videos:
            return
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        self._partial.replace(shard_path(self._folder, self._number, "bin"))
        content = {"bytes": self._position, "videos": self._videos}
        write_json(shard_path(self._folder, self._number, "json"), content)
        self._number, self._position, self._videos = self._number + 1, 0, {}
        self._stream = self._partial.open("wb")
