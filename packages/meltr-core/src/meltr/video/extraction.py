"""Computes something once for every video of a data set: frames of a cache, features, visual codes.

All of these share the loop `fill`. It asks a store what is already there, computes the rest in order, and records why
a video failed. The stored results depend neither on the number of processes nor on earlier interruptions. Failed videos
are tried again by the next call.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from meltr.data.processes import map_in_order
from meltr.errors import MeltrError, UserError

S = TypeVar("S")
R = TypeVar("R")
Made = TypeVar("Made", contravariant=True)

Progress = Callable[[int, int, int], None]
"""Called with the number of videos done, the number of all videos, and the number of failed videos."""


class FillReport(NamedTuple):
    """Result of `fill`.

    Args:
        total: Number of requested videos.
        added: Number of videos computed by this call. The others were already stored, or failed.
        failed: Key -> why the video failed.
    """

    total: int
    added: int
    failed: Mapping[str, str]


class Store(Protocol[Made]):
    """Storage of results. Files are written under a temporary name and renamed, so that none is ever incomplete."""

    def __contains__(self, key: str) -> bool:
        """Tell whether the result of `key` is already there."""
        ...

    def add(self, key: str, result: Made) -> None:
        """Store the result of `key`."""
        ...

    def fail(self, key: str, reason: str) -> None:
        """Record why `key` has no result."""
        ...

    def close(self, *, complete: bool) -> None:
        """Finish the work; called once.

        Args:
            complete: True if every video was tried; False if an error or Ctrl-C ended the work early.
        """
        ...


class Described(Protocol):
    """Settings that can describe themselves."""

    def text(self) -> str:
        """Return the settings in words."""
        ...


def fill(
    sources: Mapping[str, S],
    store: Store[R],
    make: Callable[[Mapping[str, S]], Generator[tuple[str, R | str], None, None]],
    *,
    progress: Progress | None = None,
) -> FillReport:
    """Compute the results that a store lacks, in the order of `sources`.

    Args:
        sources: Key -> input of the computation, for example the file of the video.
        store: Storage of the results.
        make: Yields key and result for each of the given sources, in order. A string instead of a result says why the
            video failed. `attempt` turns a function of a single video into such a function.
        progress: Called at the start and after every video.

    Raises:
        UserError: If every video fails.
    """
    todo = {key: source for key, source in sources.items() if key not in store}
    failed: dict[str, str] = {}
    before = len(sources) - len(todo)
    complete = False
    try:
        if progress is not None:
            progress(before, len(sources), 0)
        with contextlib.closing(make(todo)) as results:
            for number, (key, result) in enumerate(results, before + 1):
                if isinstance(result, str):
                    failed[key] = result
                    store.fail(key, result)
                else:
                    store.add(key, result)
                if progress is not None:
                    progress(number, len(sources), len(failed))
        complete = True
    finally:
        store.close(complete=complete)
    if failed and len(failed) == len(sources):
        key, reason = next(iter(failed.items()))
        raise UserError(f"None of the {len(failed):,} videos can be decoded. The first, {key}: {reason}")
    return FillReport(len(sources), len(todo) - len(failed), failed)


def attempt(
    sources: Mapping[str, S], work: Callable[[str, S], R], *, workers: int = 0
) -> Generator[tuple[str, R | str], None, None]:
    """Yield key and ``work(key, source)`` for each source in order, or the reason why that failed.

    Args:
        sources: Key -> source.
        work: A function that can be pickled. Any exception that it raises becomes the reason.
        workers: Number of processes; 0: this process. With worker processes, even a crash affects only one video.
    """
    results = map_in_order(_Attempt(work), sources.items(), workers=workers, died=_crashed)
    with contextlib.closing(results):
        for (key, _), result in results:
            yield key, result


def check_same(place: Path, found: Described, asked: Described, *, of: str = "") -> None:
    """Check that a store was filled with the settings of this call.

    Args:
        place: The file or folder.
        found: The settings of the store.
        asked: The settings of this call.
        of: The content of the store, for the message: ``codes of``.

    Raises:
        UserError: If they differ.
    """
    if found != asked:
        holds = f"{of} {found.text()}".lstrip()
        raise UserError(
            f"{place} holds {holds}, but {asked.text()} were requested.",
            "Choose another place, or delete this one.",
        )


@dataclass(frozen=True)
class _Attempt(Generic[S, R]):
    """A function of one video that returns the reason of a failure instead of raising it."""

    work: Callable[[str, S], R]

    def __call__(self, video: tuple[str, S]) -> R | str:
        try:
            return self.work(*video)
        except MeltrError as error:
            return error.message
        except Exception as error:  # a broken file can make the decoder raise anything
            return f"{_name(video)}: {type(error).__name__}: {error}"


def _crashed(video: tuple[str, Any]) -> str:
    return f"{_name(video)} crashes the decoder or exhausts the memory"


def _name(video: tuple[str, Any]) -> str:
    """Return the file if there is one, else the key."""
    key, source = video
    return str(source) if isinstance(source, Path) else key
