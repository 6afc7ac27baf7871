"""Reads batches of a map-style data set in processes that may fail: what failed is named, without a traceback.

A failure travels from a worker process as a value, so that its message arrives as it was written. A worker that dies
has noted which item it was reading.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from meltr.errors import MeltrError, PluginError, UserError
from meltr.seeding import seed_again

MOST_SUBSTITUTES = 100
"""Items that are tried in place of a broken one."""

_HINT = "Mend or replace it, and go on with: meltr run --resume RUN"
_GRACE = 0.3
"""Seconds in which a signal to all processes of a run reaches this one too."""


class UnreadableItemError(UserError):
    """The file of an item is missing or broken."""

    index: int = -1
    """Index of the item."""


class DeadReaderError(MeltrError):
    """A process that reads data died."""

    index: int = -1
    """Index of the item that it was reading; -1: not known."""


class WorkerDiedError(Exception):
    """A worker process ended without an answer: how, and the item that it was reading (-1: not known)."""

    def __init__(self, how: str, index: int) -> None:
        super().__init__(how, index)
        self.how, self.index = how, index


@dataclass(frozen=True)
class Failure:
    """An item that could not be read.

    Args:
        index: Its index.
        kind: Name of the exception's class.
        message: Its message.
        hint: Its hint, if it has one.
        input_is_wrong: Whether it is a `UserError`: a file that is missing or broken.
        trace: The traceback as text, for ``--debug``.
    """

    index: int
    kind: str
    message: str
    hint: str | None
    input_is_wrong: bool
    trace: str

    @classmethod
    def of(cls, index: int, error: Exception) -> Failure:
        """Return the failure that an exception amounts to."""
        known = isinstance(error, MeltrError)
        message = error.message if isinstance(error, MeltrError) else f"{type(error).__name__}: {error}"
        hint = error.hint if isinstance(error, MeltrError) else None
        wrong = isinstance(error, UserError)
        return cls(index, type(error).__name__, message, hint, wrong, "" if known else traceback.format_exc())


@dataclass(frozen=True)
class Read:
    """A collated batch, or the first failure in it, and the failures that other items stood in for."""

    batch: Any
    failure: Failure | None
    skipped: tuple[Failure, ...]


class Items(Dataset[Any]):
    """A data set whose failures are values.

    Args:
        dataset: The data set.
        seed_of: (epoch, index) -> seed of the random numbers that the item draws; None: they are left alone.
        skip: Let the next item that can be read stand in for one whose file is missing or broken.
    """

    def __init__(
        self, dataset: Dataset[Any], seed_of: Callable[[int, int], int] | None = None, *, skip: bool = False
    ) -> None:
        self._dataset, self._seed_of, self._skip = dataset, seed_of, skip
        self.lost: set[int] = set()
        """Items whose worker died twice."""
        self.notes: torch.Tensor | None = None
        """Process and item of each worker, (workers, 2), in shared memory."""

    @property
    def skips(self) -> bool:
        """Whether other items stand in for those that cannot be read."""
        return self._skip

    def __len__(self) -> int:
        """Items."""
        return len(self._dataset)  # type: ignore[arg-type]

    def __getitem__(self, key: tuple[int, int]) -> tuple[Any, tuple[Failure, ...]]:
        """Return an item, or its `Failure`, and the failures that it stands in for.

        Args:
            key: Epoch and index.
        """
        epoch, index = key
        skipped: list[Failure] = []
        for number in range(index, index + MOST_SUBSTITUTES):
            found = self._one(epoch, number % len(self))
            if not (isinstance(found, Failure) and found.input_is_wrong and self._skip):
                return found, tuple(skipped)
            skipped.append(found)
        return skipped[0], ()

    def _one(self, epoch: int, index: int) -> Any:
        if self.notes is not None:
            info = torch.utils.data.get_worker_info()
            if info is not None:
                self.notes[info.id] = torch.tensor([os.getpid(), index])
        if index in self.lost:
            return Failure(index, "WorkerDiedError", "the process that read it died twice", None, True, "")
        if self._seed_of is not None:
            seed_again(self._seed_of(epoch, index))
        try:
            return self._dataset[index]
        except Exception as error:
            return Failure.of(index, error)


class Collate:
    """Collates items of `Items`; it can be pickled if `collate` can.

    Args:
        collate: Turns a list of items into a batch; None: torch's.
    """

    def __init__(self, collate: Callable[[list[Any]], Any] | None) -> None:
        self.function = collate
        self._collate = collate or default_collate

    def __call__(self, pairs: Sequence[tuple[Any, tuple[Failure, ...]]]) -> Read:
        """Return the batch, or the first failure in it."""
        failed = next((item for item, _ in pairs if isinstance(item, Failure)), None)
        skipped = tuple(each for _, several in pairs for each in several)
        return Read(None if failed else self._collate([item for item, _ in pairs]), failed, skipped)


class Reader:
    """Reads batches of items. Its worker processes stay alive from one epoch to the next.

    Args:
        items: The items.
        collate: Turns a list of items into a batch; None: torch's.
        workers: Processes that read; 0: this one.
        name_of: Index -> name of the item in messages.
    """

    def __init__(
        self,
        items: Items,
        *,
        collate: Callable[[list[Any]], Any] | None = None,
        workers: int = 0,
        name_of: Callable[[int], str] = str,
    ) -> None:
        self._items, self._collate, self._workers, self._name_of = items, Collate(collate), workers, name_of
        self._plan = _Plan()
        self._loader: DataLoader[Any] | None = None
        self._processes: list[BaseProcess] = []
        self._busy = False
        self.skipped: dict[int, str] = {}
        """Items that others stood in for: index -> name and reason."""

    def batches(self, chosen: Sequence[Sequence[int]], *, epoch: int = 0) -> Iterator[Any]:
        """Yield the batches with these indices.

        Args:
            chosen: Indices of each batch.
            epoch: Number of the epoch, from which the items' random numbers follow.

        Raises:
            UnreadableItemError: If the file of an item is missing or broken.
            PluginError: If the data set raised anything else.
            DeadReaderError: If a worker process died.
        """
        if self._busy:  # Two epochs at once cannot share processes.
            apart = Reader(self._items, collate=self._collate.function, workers=self._workers, name_of=self._name_of)
            apart.skipped = self.skipped
            yield from apart.batches(chosen, epoch=epoch)
            return
        self._busy = True
        try:
            yield from self._batches(chosen, epoch)
        finally:
            self._busy = False

    def _batches(self, chosen: Sequence[Sequence[int]], epoch: int) -> Iterator[Any]:
        done, deaths = 0, dict[int, int]()
        while done < len(chosen):
            reading = self.read(chosen[done:], epoch)
            try:
                for read in reading:
                    self.skipped.update({e.index: f"{self._name_of(e.index)}: {e.message}" for e in read.skipped})
                    if read.failure is not None:
                        self._end(reading)
                        raise error_of(read.failure, self._name_of)
                    yield read.batch
                    done += 1
            except WorkerDiedError as death:
                index = death.index
                deaths[index] = deaths.get(index, 0) + 1
                if not self._items.skips or index < 0:
                    raise _death(death, self._name_of) from None
                if deaths[index] > 1:
                    self._items.lost.add(index)

    def _end(self, reading: Generator[Read, None, None]) -> None:
        """End the worker processes.

        The traceback of an error would keep them, in a cycle. Where a cycle is collected, torch's queues go before its
        workers, which then wait for a message that does not come: five seconds for each of them.
        """
        reading.close()
        self._loader, self._processes = None, []

    def read(self, chosen: Sequence[Sequence[int]], epoch: int = 0) -> Generator[Read, None, None]:
        """Yield the batches with these indices, or what failed in them.

        Raises:
            WorkerDiedError: If a worker died: how, and the item that it was reading.
        """
        batches_read: Iterator[Any] = iter(())
        self._plan.batches = [[(epoch, index) for index in batch] for batch in chosen]
        try:
            with _child_signals_kept():
                batches_read = iter(self._opened())
            self._processes = self._processes or active_children()
            while True:
                try:
                    read = next(batches_read)
                except StopIteration:
                    return
                yield read
        except (RuntimeError, OSError, EOFError) as error:
            death = self._death_behind(error)
            self._loader, self._processes, batches_read = None, [], iter(())
            if death is None:
                raise
            try:
                raise death from None
            finally:
                del death  # else this frame and the error keep each other, and with them the processes

    def _death_behind(self, error: Exception) -> WorkerDiedError | None:
        """Return the death of a worker that an error tells of.

        torch reports one that it finds dead. One that dies while its batch is handed over breaks a connection.
        """
        notes = self._items.notes
        if notes is None:
            return None
        time.sleep(_GRACE)
        if "DataLoader worker" in str(error):
            return WorkerDiedError(_how(error), _item_of(str(error), notes))
        if isinstance(error, RuntimeError):
            return None
        read = dict(notes.tolist())
        for process in self._processes:
            if process.pid in read and process.exitcode is not None:
                return WorkerDiedError(_ended(process.exitcode), read[process.pid])
        return None

    def _opened(self) -> DataLoader[Any]:
        if self._loader is None:
            self._items.notes = torch.full((self._workers, 2), -1).share_memory_() if self._workers else None
            self._loader = DataLoader(
                self._items,
                batch_sampler=self._plan,
                collate_fn=self._collate,
                num_workers=self._workers,
                persistent_workers=self._workers > 0,
                worker_init_fn=_settle if self._workers else None,
                generator=torch.Generator(),
            )
        return self._loader


class _Plan:
    """The batches that a loader reads next, as keys of `Items`."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[int, int]]] = []

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def unreadable(
    items: Items, indices: Sequence[int], *, workers: int = 0, name_of: Callable[[int], str] = str
) -> dict[int, str]:
    """Read items one by one; return the index of each whose file is missing or broken -> its name and the reason.

    An item counts as broken too if the process that reads it dies twice.

    Args:
        items: The items.
        indices: Indices of those to read.
        workers: Processes that read; 0: this one.
        name_of: Index -> name of the item in messages.

    Raises:
        PluginError: If the data set raised anything else.
        DeadReaderError: If a worker process died, and it is not known over which item.
    """
    reader = Reader(items, collate=len, workers=workers, name_of=name_of)
    found, done, deaths = dict[int, str](), 0, set[int]()
    while done < len(indices):
        try:
            for read in reader.read([[index] for index in indices[done:]]):
                done += 1
                if read.failure is not None and not read.failure.input_is_wrong:
                    raise error_of(read.failure, name_of)
                if read.failure is not None:
                    found[read.failure.index] = f"{name_of(read.failure.index)}: {read.failure.message}"
        except WorkerDiedError as death:
            if death.index < 0:
                raise _death(death, name_of) from None
            if death.index in deaths:
                items.lost.add(death.index)
            deaths.add(death.index)
    return found


def naming(dataset: object, noun: str) -> Callable[[int], str]:
    """Return a function from an index to a name for messages: that of the data set's own `item_name`, if it has one."""
    own = getattr(dataset, "item_name", None)
    return (lambda index: f"{noun} {index} ({own(index)})") if callable(own) else (lambda index: f"{noun} {index}")


def error_of(failure: Failure, name_of: Callable[[int], str]) -> MeltrError:
    """Return the error for an item that could not be read."""
    hint = _HINT if failure.hint is None else f"{failure.hint} Then go on with: meltr run --resume RUN"
    what = f"Cannot read {name_of(failure.index)}: {failure.message}"
    if failure.input_is_wrong:
        wrong = UnreadableItemError(what, hint)
        wrong.index = failure.index
        return wrong
    error = PluginError(what, hint)
    if failure.trace:
        error.__cause__ = RuntimeError(f"in the process that read it:\n{failure.trace}")
    return error


def _death(death: WorkerDiedError, name_of: Callable[[int], str]) -> MeltrError:
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
def _child_signals_kept() -> Iterator[None]:
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


def _settle(number: int) -> None:
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
