"""Worker processes of a loader that die: how they ended, and the item that each was reading.

A worker notes the item that it reads before it reads it.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess

import torch

from meltr.errors import MeltrError

_GRACE = 0.3
"""Seconds in which a signal to all processes of a run reaches this one too."""


class DeadReaderError(MeltrError):
    """A process that reads data died."""

    index: int = -1
    """Index of the item that it was reading; -1: not known."""


class WorkerDiedError(Exception):
    """A worker process ended without an answer: how, and the item that it was reading (-1: not known)."""

    def __init__(self, how: str, index: int) -> None:
        super().__init__(how, index)
        self.how, self.index = how, index


def death_behind(
    error: Exception, processes: Sequence[BaseProcess], notes: torch.Tensor | None
) -> WorkerDiedError | None:
    """Return the death of a worker that an error of a loader tells of; None if it tells of something else.

    torch reports a worker that it finds dead. One that dies while its batch is handed over breaks a connection.

    Args:
        error: What the loader raised.
        processes: The worker processes.
        notes: Process and item of each worker, (workers, 2); None: there are no workers.
    """
    if notes is None:
        return None
    time.sleep(_GRACE)
    if "DataLoader worker" in str(error):
        return WorkerDiedError(_how(error), _item_of(str(error), notes))
    if isinstance(error, RuntimeError):
        return None
    read = dict(notes.tolist())
    for process in processes:
        if process.pid in read and process.exitcode is not None:
            return WorkerDiedError(_ended(process.exitcode), read[process.pid])
    return None


def error_of_death(death: WorkerDiedError, name_of: Callable[[int], str]) -> DeadReaderError:
    """Return the error for a worker that died."""
    how, index = death.how, death.index
    at = f" while it read {name_of(index)}" if index >= 0 else ""
    error = DeadReaderError(
        f"A process that reads data died{at} ({how}).",
        "Was it out of memory, or is the file broken? Go on with: meltr run --resume RUN",
    )
    error.index = index
    return error


def _how(error: Exception) -> str:
    found = re.search(
        r"killed by signal: ([^.]*)|exited unexpectedly with exit code (-?\d+)", f"{error} {error.__cause__}"
    )
    return (found[0] if found else "exited unexpectedly").strip()


def _ended(code: int) -> str:
    """Return how a process ended, in torch's words."""
    return f"killed by signal: {signal.strsignal(-code)}" if code < 0 else f"exited unexpectedly with exit code {code}"


def _item_of(message: str, notes: torch.Tensor) -> int:
    """Return the item that a dead worker was reading, -1 if it is not known."""
    found = re.search(r"pid(?:\(s\))? ([0-9, ]+)", message)
    dead = {int(pid) for pid in re.findall(r"[0-9]+", found[1])} if found else set()
    return next((index for pid, index in notes.tolist() if pid in dead), -1)


@contextlib.contextmanager
def child_signals_kept() -> Iterator[None]:
    """Keep the answer to SIGCHLD: torch's own raises in the middle of a step, where nothing can be saved any more.

    A dead worker is noticed when its batch is waited for.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before if before is not None else signal.SIG_DFL)


def settle(number: int) -> None:
    """Leave signals to the main process, which ends its workers; a signal may reach all processes of a run."""
    for name in ("SIGINT", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_for_parent, daemon=True).start()


def _end_for_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
