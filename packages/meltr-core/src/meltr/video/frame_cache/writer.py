"""Fill a frame cache: in several processes, whole shards at a time, so that it goes on after a kill."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from meltr.data.processes import map_in_order
from meltr.errors import UserError
from meltr.files import write_json, write_lines
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
from meltr.video.frames.media import MediaError, decode, require
from meltr.video.frames.pictures import Picture, shrink_short_side
from meltr.video.frames.sampling import sampler_named

Progress = Callable[[int, int, int], None]
"""Called with the videos done, all there are, and how many of those done could not be decoded."""

SHARD_SIZE = 256
"""Videos a shard."""


class Encoded(NamedTuple):
    """The frames of a video as they are stored.

    Args:
        pictures: Each different frame once.
        order: For each frame that is wanted, its place among `pictures`.
        shape: Height and width.
    """

    pictures: tuple[bytes, ...]
    order: tuple[int, ...]
    shape: tuple[int, int]


class CacheReport(NamedTuple):
    """What `fill_cache` did.

    Args:
        total: Videos that were asked for.
        added: Those decoded now; the others were there already, or failed.
        failed: Key -> why its file could not be decoded.
    """

    total: int
    added: int
    failed: Mapping[str, str]


def fill_cache(
    media: Mapping[str, Path],
    folder: Path,
    settings: CacheSettings,
    *,
    workers: int = 0,
    shard_size: int = SHARD_SIZE,
    progress: Progress | None = None,
) -> CacheReport:
    """Decode what a cache does not hold yet, and add it.

    A killed call loses the shard that was being written. Files that cannot be decoded are listed in ``failed.jsonl``
    and tried again by the next call. What is written does not depend on `workers` or on kills.

    Args:
        media: Key -> file; files of several data sets may go into one cache.
        folder: The cache; made if missing.
        settings: How frames are made.
        workers: Processes that decode; 0: this one. With processes, even a decoder that crashes costs one video only.
        shard_size: Videos a shard.
        progress: Called after every video.

    Raises:
        UserError: If the folder holds something else, a cache with other settings or of other files, or another process
            fills it; if no file at all can be decoded; or if PyAV or Pillow is missing.
    """
    for library in ("av", "PIL.Image"):
        require(library)
    _prepare(folder, settings)
    with _locked(folder):
        done = read_entries(folder)
        other = list(changed(media, done))
        if other:
            raise UserError(
                f"The cache {folder} was made of other files: {named(other)} ({len(other):,} of {len(media):,}) have "
                "another name or size now.",
                "Choose another folder for the cache, or delete this one.",
            )
        todo = sorted(key for key in media if key not in done)
        shards = _Shards(folder, first=_next_number(folder), size=shard_size)
        failed = _fill(media, todo, shards, settings=settings, workers=workers, progress=progress)
    if failed and len(failed) == len(media):
        key, reason = next(iter(failed.items()))
        raise UserError(f"None of {len(media):,} files can be decoded. The first, {key}: {reason}")
    return CacheReport(len(media), len(todo) - len(failed), failed)


def _prepare(folder: Path, settings: CacheSettings) -> None:
    """Make the folder, or check that what is there is a cache with these settings."""
    if not (folder / HEADER).exists():
        if folder.exists() and (not folder.is_dir() or _visible(folder)):
            raise UserError(f"{folder} is neither empty nor a frame cache.", "Choose another folder.")
        write_json(folder / HEADER, header(settings))
    found = read_settings(folder)
    if found != settings:
        raise UserError(
            f"The cache {folder} holds {found.text()}; asked for were {settings.text()}.",
            "Choose another folder for the new cache, or delete this one.",
        )


def _visible(folder: Path) -> list[Path]:
    """Return what is in `folder`, but for what a killed process may have left."""
    return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes from filling the cache, where the system has locks; a killed process leaves none."""
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


def _next_number(folder: Path) -> int:
    return next(number for number in count() if not shard_path(folder, number, "json").exists())


def _fill(
    media: Mapping[str, Path],
    todo: list[str],
    shards: _Shards,
    *,
    settings: CacheSettings,
    workers: int,
    progress: Progress | None,
) -> dict[str, str]:
    """Decode `todo` into `shards`; return those of `media` that failed, with the reason."""
    failed = {key: reason for key, reason in read_failed(shards.folder).items() if key not in media}
    elsewhere = len(failed)
    before = len(media) - len(todo)
    encode = partial(_encode, settings=settings)
    results = map_in_order(encode, (media[key] for key in todo), workers=workers, died=_crashed)
    if progress is not None:
        progress(before, len(media), 0)
    with contextlib.closing(results), shards:
        for number, (key, (path, encoded)) in enumerate(zip(todo, results, strict=True), start=before + 1):
            if isinstance(encoded, str):
                failed[key] = encoded
            else:
                shards.add(key, path, encoded)
            if progress is not None:
                progress(number, len(media), len(failed) - elsewhere)
        shards.finish()
    write_lines(shards.folder / FAILED, ({"key": key, "reason": failed[key]} for key in sorted(failed)))
    return {key: reason for key, reason in failed.items() if key in media}


def _encode(path: Path, settings: CacheSettings) -> Encoded | str:
    """Return the frames of a file as they are stored, or what is wrong with it."""
    sampler = sampler_named(settings.sampler)
    numbers: list[int] = []

    def choose(total: int) -> list[int]:
        """Ask for each frame once."""
        numbers[:] = sampler(total, settings.frames)
        return sorted(set(numbers))

    try:
        frames, indices, _ = decode(path, choose)
        pictures = [shrink_short_side(frame, settings.size) for frame in frames]
        stored = tuple(_as_bytes(picture, settings.quality) for picture in pictures)
    except MediaError as error:
        return error.message
    except Exception as error:  # a broken file can make the decoder raise anything
        return f"{path}: {type(error).__name__}: {error}"
    height, width, _ = pictures[0].shape
    return Encoded(stored, tuple(indices.index(number) for number in numbers), (height, width))


def _as_bytes(picture: Picture, quality: int | None) -> bytes:
    if quality is None:
        return picture.tobytes()
    buffer = io.BytesIO()
    require("PIL.Image").fromarray(picture).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _crashed(path: Path) -> str:
    return f"{path} crashes the decoder, or needs more memory than there is"


class _Shards:
    """Writes shards one after the other; as a context manager, it throws away what is not finished."""

    def __init__(self, folder: Path, *, first: int, size: int) -> None:
        self.folder = folder
        self._number, self._size = first, size
        self._videos: dict[str, dict[str, Any]] = {}
        self._position = 0
        self._partial = folder / ".shard.partial"
        self._stream = self._partial.open("wb")

    def __enter__(self) -> _Shards:
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()
        self._partial.unlink(missing_ok=True)

    def add(self, key: str, path: Path, encoded: Encoded) -> None:
        """Append a video; a full shard is finished."""
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
            self.finish()

    def finish(self) -> None:
        """Make what was added a shard, and begin the next."""
        if not self._videos:
            return
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        self._partial.replace(shard_path(self.folder, self._number, "bin"))
        content = {"bytes": self._position, "videos": self._videos}
        write_json(shard_path(self.folder, self._number, "json"), content)
        self._number, self._position, self._videos = self._number + 1, 0, {}
        self._stream = self._partial.open("wb")
