"""Work spread over processes that may die: a decoder can crash on a broken file, and takes only that file with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import TypeVar

A = TypeVar("A")
R = TypeVar("R")

MOST_WORKERS = 8
"""Processes that decode videos if nobody says how many."""

_AHEAD = 4
"""Items in flight for each process."""


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_count(asked: int | None = None) -> int:
    """Return how many processes decode videos: `asked`, or one a core and at most `MOST_WORKERS`."""
    return min(MOST_WORKERS, available_cores()) if asked is None else asked


def map_in_order(
    function: Callable[[A], R], items: Iterable[A], *, workers: int, died: Callable[[A], R]
) -> Generator[tuple[A, R], None, None]:
    """Yield (item, function(item)) in the order of `items`, computed by other processes.

    If a process dies, the items that were in flight are tried again, one at a time. The processes end with this one,
    even if it is killed.

    Args:
        function: A function of a module, so that it can be pickled.
        items: Taken as they are needed.
        workers: Processes; 0: this one does it all.
        died: Gives the result of an item whose process died again.
    """
    if workers < 1:
        yield from ((item, function(item)) for item in items)
        return
    waiting = iter(items)
    flying: deque[tuple[A, Future[R], ProcessPoolExecutor]] = deque()
    pool = _pool(workers)
    alone = _Alone()
    try:
        while True:
            while len(flying) < _AHEAD * workers and (rest := next(waiting, _END)) is not _END:
                flying.append((rest, _submit(pool, function, rest), pool))  # type: ignore[arg-type]
            if not flying:
                return
            item, future, origin = flying.popleft()
            try:
                result = future.result()
            except BrokenProcessPool:
                if origin is pool:
                    pool.shutdown(wait=False)
                    pool = _pool(workers)
                result = alone.run(function, item, died)
            yield item, result
    finally:
        pool.shutdown(cancel_futures=True)
        alone.close()


_END = object()


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_obey)


def _submit(pool: ProcessPoolExecutor, function: Callable[[A], R], item: A) -> Future[R]:
    """Submit, and let a pool that is already broken fail later, with those in flight."""
    try:
        return pool.submit(function, item)
    except BrokenProcessPool as error:
        broken: Future[R] = Future()
        broken.set_exception(error)
        return broken


class _Alone:
    """A process that does one item at a time; made when it is needed."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def run(self, function: Callable[[A], R], item: A, died: Callable[[A], R]) -> R:
        """Return ``function(item)``, or ``died(item)`` if the process dies."""
        if self._pool is None:
            self._pool = _pool(1)
        try:
            return self._pool.submit(function, item).result()
        except BrokenProcessPool:
            self.close()
            return died(item)

    def close(self) -> None:
        """End the process."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


def _obey() -> None:
    """Leave Ctrl-C to the parent, and end when it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
