"""Run work in processes that may die: if a decoder crashes on a broken file, only that file is lost."""

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
"""Default maximum number of processes that decode videos."""

_AHEAD = 4
"""Items in flight per process."""


def available_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_count(asked: int | None = None) -> int:
    """Return the number of processes that decode videos: `asked`, or one per core up to `MOST_WORKERS`."""
    return min(MOST_WORKERS, available_cores()) if asked is None else asked


def map_in_order(
    function: Callable[[A], R], items: Iterable[A], *, workers: int, died: Callable[[A], R]
) -> Generator[tuple[A, R], None, None]:
    """Yield (item, function(item)) in the order of `items`, computed by worker processes.

    If a worker dies, the items in flight are tried again, one at a time. The workers end with this process, even if it
    is killed.

    Args:
        function: A module-level function, so that it can be pickled.
        items: The items, consumed as needed.
        workers: Number of worker processes; 0: everything runs in this process.
        died: Returns the result for an item whose worker died twice.
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
    """Submit an item; if the pool is already broken, return a future that fails like those in flight."""
    try:
        return pool.submit(function, item)
    except BrokenProcessPool as error:
        broken: Future[R] = Future()
        broken.set_exception(error)
        return broken


class _Alone:
    """A worker process for one item at a time, started when it is first needed."""

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
        """Stop the worker process."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


def _obey() -> None:
    """Leave Ctrl-C to the parent, and exit when the parent exits."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
