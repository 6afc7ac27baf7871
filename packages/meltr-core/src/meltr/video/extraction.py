"""Make something of every video of a data set, once: frames of a cache, features, visual codes.

`fill` is the loop that all of them share. It asks a store what is already there, makes the rest in order, and notes
why a video failed. What is stored depends neither on the number of processes nor on where an earlier call was killed.
Failed videos are tried again by the next call.
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
"""Called with the videos done, the number of all videos, and how many of those done have failed."""


class FillReport(NamedTuple):
    """What `fill` did.

    Args:
        total: Videos that were asked for.
        added: Videos whose results were made now. The others were already there, or failed.
        failed: Key -> why the video failed.
    """

    total: int
    added: int
    failed: Mapping[str, str]


class Store(Protocol[Made]):
    """Where results are kept. It writes files beside their place and renames them: a kill leaves none half done."""

    def __contains__(self, key: str) -> bool:
        """Tell whether the result of `key` is already there."""
        ...

    def add(self, key: str, result: Made) -> None:
        """Keep the result of `key`."""
        ...

    def fail(self, key: str, reason: str) -> None:
        """Note why `key` has no result."""
        ...

    def close(self, *, complete: bool) -> None:
        """End the work; called once.

        Args:
            complete: Whether every video was tried. False: an error or Ctrl-C ended the work early.
        """
        ...


class Described(Protocol):
    """Settings that can say what they are."""

    def text(self) -> str:
        """Return the settings as a user reads them."""
        ...


def fill(
    sources: Mapping[str, S],
    store: Store[R],
    make: Callable[[Mapping[str, S]], Generator[tuple[str, R | str], None, None]],
    *,
    progress: Progress | None = None,
) -> FillReport:
    """Make the results that a store lacks, in the order of `sources`.

    Args:
        sources: Key -> what the result is made of, for example the file of the video.
        store: Where the results go.
        make: Yields key and result of each of the given sources, in order. A string in place of a result says why the
            video failed. `attempt` makes such a function of one that handles a single video.
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
    """Yield key and ``work(key, source)`` of each source in order, or the reason why that failed.

    Args:
        sources: Key -> source.
        work: A function that can be pickled. Whatever it raises is the reason.
        workers: Processes that work; 0: this one. With processes, even a crash costs one video only.
    """
    results = map_in_order(_Attempt(work), sources.items(), workers=workers, died=_crashed)
    with contextlib.closing(results):
        for (key, _), result in results:
            yield key, result


def check_same(place: Path, found: Described, asked: Described, *, of: str = "") -> None:
    """Check that a store was filled with the settings that are asked for now.

    Args:
        place: The file or folder.
        found: The settings it was filled with.
        asked: Those of this call.
        of: What it holds, for the message: ``codes of``.

    Raises:
        UserError: If they differ.
    """
    if found != asked:
        holds = f"{of} {found.text()}".lstrip()
        raise UserError(
            f"{place} holds {holds}, but {asked.text()} were requested.", "Choose another place, or delete this one."
        )


@dataclass(frozen=True)
class _Attempt(Generic[S, R]):
    """A function of one video that returns the reason instead of raising."""

    work: Callable[[str, S], R]

    def __call__(self, video: tuple[str, S]) -> R | str:
        try:
            return self.work(*video)
        except MeltrError as error:
            return error.message
        except Exception as error:  # a broken file can make the decoder raise anything
            return f"{_name(video)}: {type(error).__name__}: {error}"


def _crashed(video: tuple[str, Any]) -> str:
    return f"{_name(video)} crashes the decoder, or needs more memory than there is"


def _name(video: tuple[str, Any]) -> str:
    """Return the file where there is one, the key otherwise."""
    key, source = video
    return str(source) if isinstance(source, Path) else key
