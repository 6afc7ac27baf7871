"""Reads a frame cache."""

from __future__ import annotations

import io
import mmap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from meltr.errors import MeltrError, UserError
from meltr.video.corpus import Corpus
from meltr.video.frame_cache.layout import (
    FAILED,
    MAKE_AGAIN,
    Entry,
    changed,
    named,
    read_entries,
    read_failed,
    read_settings,
    shard_path,
)
from meltr.video.frames.media import MediaError
from meltr.video.frames.sampling import SAMPLERS, Sampler, middles, sampler_named
from meltr.video.frames.source import Frames
from meltr.video.frames.stills import opened, rgb


class CachedFrames:
    """A `meltr.video.frames.source.FrameSource` that reads a frame cache.

    It can be used from several threads, pickled and forked: each process opens the files on first use.

    Args:
        folder: The cache.
        count: Number of frames of each video; None: all stored frames.
        sampler: Selects among the stored frames, by name or as a function; ``random`` draws at every call. If all
            stored frames are taken, a name must be that of the cache's sampler. None: ``middles``, which keeps even
            spacing.
        size: Smallest allowed number of pixels of the shorter side, unless the video itself was smaller.
        media: Key -> file of everything that will be read: it is checked to be in the cache and unchanged.

    Raises:
        UserError: If there is no cache, it is damaged or incomplete, or it was made with other settings or from other
            files.
    """

    def __init__(
        self,
        folder: Path,
        count: int | None = None,
        sampler: str | Sampler | None = None,
        *,
        size: int | None = None,
        media: Mapping[str, Path] | None = None,
    ) -> None:
        self.folder = folder.resolve()
        self.settings = read_settings(self.folder)
        self.count = self.settings.frames if count is None else count
        self._check_settings(sampler, size)
        subset: str | Sampler = middles if sampler is None else sampler
        self._sampler = sampler_named(subset) if isinstance(subset, str) else subset
        self._load()
        if media is not None:
            self._check_media(media)

    def _check_settings(self, sampler: str | Sampler | None, size: int | None) -> None:
        stored = self.settings
        holds = f"The cache {self.folder} holds {stored.text()}"
        other = "Make another cache with `meltr data cache`, in another folder."
        if not 1 <= self.count <= stored.frames:
            raise UserError(f"{holds}; {self.count} frames were requested.", other)
        if self.count == stored.frames and sampler in [name for name in SAMPLERS if name != stored.sampler]:
            raise UserError(f"{holds}; the frames of {sampler!r} were requested.", other)
        if size is not None and stored.size is not None and stored.size < size:
            raise UserError(f"{holds}; at least {size} pixels were requested.", other)

    def _check_media(self, media: Mapping[str, Path]) -> None:
        absent = [key for key in media if key not in self._entries and key not in self.failed]
        if absent:
            raise UserError(
                f"The cache {self.folder} lacks {len(absent):,} of {len(media):,} videos: {named(absent)}.",
                "Run the same `meltr data cache` again: it adds the missing videos.",
            )
        other = list(changed(media, self._entries))
        if other:
            raise UserError(
                f"{len(other):,} of {len(media):,} files differ from those in the cache {self.folder}: {named(other)}.",
                MAKE_AGAIN,
            )

    def _load(self) -> None:
        self._entries = read_entries(self.folder)
        self.failed = read_failed(self.folder)
        self._maps: dict[int, mmap.mmap] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for another process, which reads the index itself."""
        return {"folder": self.folder, "settings": self.settings, "count": self.count, "_sampler": self._sampler}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Read the index again."""
        self.__dict__.update(state)
        self._load()

    def __len__(self) -> int:
        """Number of videos in the cache."""
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        """Tell whether the cache has frames of `key`."""
        return key in self._entries

    def frames(self, key: str) -> Frames:
        """Return the frames of `key`, (`count`, H, W, 3).

        Raises:
            KeyError: If `key` is unknown.
            meltr.UserError: If its file could not be decoded when the cache was made, or the cache is damaged.
        """
        if key in self.failed and key not in self._entries:
            raise MediaError(f"{key} is not in the cache {self.folder}: {self.failed[key]}")
        entry = self._entries[key]
        stored = self.settings.frames
        order = range(stored) if self.count == stored else self._sampler(stored, self.count)
        spans = [entry.spans[number] for number in order]
        pictures = {span: self._picture(entry, span) for span in dict.fromkeys(spans)}
        return np.stack([pictures[span] for span in spans])

    def _picture(self, entry: Entry, span: tuple[int, int]) -> npt.NDArray[np.uint8]:
        content = self._shard(entry.shard)[slice(*span)]
        try:
            if self.settings.quality is None:
                return np.frombuffer(content, np.uint8).reshape(*entry.shape, 3)
            with opened(io.BytesIO(content), ("JPEG",)) as picture:
                return np.asarray(rgb(picture))
        except MeltrError:
            raise
        except Exception as error:  # a broken picture can make the decoder raise anything
            file = shard_path(self.folder, entry.shard, "bin")
            raise UserError(f"{file} is damaged at byte {span[0]:,}: {type(error).__name__}: {error}.", MAKE_AGAIN)

    def _shard(self, number: int) -> mmap.mmap:
        if number not in self._maps:
            with shard_path(self.folder, number, "bin").open("rb") as stream:
                self._maps[number] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[number]


def without_failed(corpus: Corpus, cache: CachedFrames) -> Corpus:
    """Return `corpus` without the examples whose file could not be decoded, and with a note about them."""
    lost = [key for key in corpus.media if key in cache.failed and key not in cache]
    if not lost:
        return corpus
    gone = frozenset(lost)
    splits = {name: tuple(item for item in items if item.media not in gone) for name, items in corpus.splits.items()}
    fewer = _count(corpus.splits.values()) - _count(splits.values())
    note = (
        f"{len(lost):,} files could not be decoded ({named(lost)}; {cache.folder / FAILED} says why); "
        f"{fewer:,} examples are skipped"
    )
    media = {key: path for key, path in corpus.media.items() if key not in gone}
    return replace(corpus, splits=splits, media=media, notes=(*corpus.notes, note))


def _count(splits: Iterable[Sequence[object]]) -> int:
    return sum(len(items) for items in splits)
