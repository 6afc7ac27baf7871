"""Reads batches of a map-style data set in processes that may fail or die."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.utils.data import DataLoader

from meltr.data.items import Collate, Items, Read, error_of
from meltr.data.worker_death import WorkerDiedError, child_signals_kept, death_behind, error_of_death, settle


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
                    raise error_of_death(death, self._name_of) from None
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
            with child_signals_kept():
                batches_read = iter(self._opened())
            self._processes = self._processes or active_children()
            while True:
                try:
                    read = next(batches_read)
                except StopIteration:
                    return
                yield read
        except (RuntimeError, OSError, EOFError) as error:
            death = death_behind(error, self._processes, self._items.notes)
            self._loader, self._processes, batches_read = None, [], iter(())
            if death is None:
                raise
            try:
                raise death from None
            finally:
                del death  # else this frame and the error keep each other, and with them the processes

    def _opened(self) -> DataLoader[Any]:
        if self._loader is None:
            self._items.notes = torch.full((self._workers, 2), -1).share_memory_() if self._workers else None
            self._loader = DataLoader(
                self._items,
                batch_sampler=self._plan,
                collate_fn=self._collate,
                num_workers=self._workers,
                persistent_workers=self._workers > 0,
                worker_init_fn=settle if self._workers else None,
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
                raise error_of_death(death, name_of) from None
            if death.index in deaths:
                items.lost.add(death.index)
            deaths.add(death.index)
    return found
