"""Batches of any map-style data set, as a pure function of (epoch, index)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from meltr.data.items import Items, naming
from meltr.data.reading import Reader
from meltr.seeding import derive


class LoaderBatches:
    """A `meltr.BatchSource` over a map-style data set, read by a DataLoader.

    The order of an epoch depends only on the seed and the epoch. The random numbers that an item draws (augmentation)
    depend only on the seed, the epoch and the item. So the batches do not depend on the number of workers or on the
    index at which an epoch was entered.

    Args:
        dataset: An object with ``len()`` and ``[index]``.
        batch_size: Items per batch, over all processes; a smaller last batch is dropped unless it is the only one.
        seed: The run's seed.
        rank: Rank of this process (``context.rank``), which selects its part of every batch.
        world_size: Number of processes that share every batch (``context.world_size``).
        shuffle: Shuffle every epoch.
        collate: Turns a list of items into a batch; default: torch's.
        workers: Number of processes that read items, which stay alive over epochs; 0: items are read in this process.
        skip_broken: Let the next item that can be read stand in for one whose file is missing or broken
            (``data.allow_missing``); `skipped` says which.

    An item that cannot be read is named in the error: by ``dataset.item_name(index)`` too if there is such a method.

    Raises:
        ValueError: If the data set is empty, or smaller than the number of processes.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        collate: Callable[[list[Any]], Any] | None = None,
        workers: int = 0,
        skip_broken: bool = False,
    ) -> None:
        self.size: int = len(dataset)  # type: ignore[arg-type]
        if self.size == 0:
            raise ValueError("the data set is empty")
        self.batch_size = equal_parts(min(batch_size, self.size), world_size)
        self._part = part_of_batch(self.batch_size, rank, world_size)
        self.dataset, self._seed, self._shuffle = dataset, seed, shuffle
        items = Items(dataset, ItemSeeds(seed), skip=skip_broken)
        name_of = naming(dataset, "training item")
        self._reader = Reader(items, collate=collate, workers=workers, name_of=name_of)

    @property
    def skipped(self) -> dict[int, str]:
        """Items that others stood in for: index -> name and reason."""
        return self._reader.skipped

    def __len__(self) -> int:
        """Batches per epoch."""
        return self.size // self.batch_size

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Yield the batches `start`, `start` + 1, ... of `epoch`."""
        generator = torch.Generator().manual_seed(derive(self._seed, "order", epoch))
        order = torch.randperm(self.size, generator=generator).tolist() if self._shuffle else list(range(self.size))
        whole = [order[i * self.batch_size : (i + 1) * self.batch_size] for i in range(start, len(self))]
        chunks = [batch[self._part] for batch in whole]
        yield from self._reader.batches(chunks, epoch=epoch)


@dataclass(frozen=True)
class ItemSeeds:
    """Seeds of the random numbers that items draw.

    Args:
        seed: The run's seed.
    """

    seed: int

    def __call__(self, epoch: int, index: int) -> int:
        """Return the seed of an item in an epoch."""
        return derive(self.seed, "item", epoch, index)


def equal_parts(batch_size: int, world_size: int) -> int:
    """Return the largest batch size up to `batch_size` that can be split into equal parts, one per process.

    Raises:
        ValueError: If there are more processes than examples.
    """
    if batch_size < world_size:
        raise ValueError(f"{batch_size} examples per batch cannot be shared by {world_size} processes")
    return batch_size - batch_size % world_size


def part_of_batch(batch_size: int, rank: int, world_size: int) -> slice:
    """Return the slice of a batch that process `rank` of `world_size` gets: equal, adjacent parts."""
    size = batch_size // world_size
    return slice(rank * size, (rank + 1) * size)
