"""Fetching batches by position: for the held-out stream and for the replay buffer."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from meltr.context import BatchSource


def to_device(batch: Any, device: torch.device) -> Any:
    """Move every tensor in a batch (nested dicts, lists, tuples) to `device`."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def batch_at(source: BatchSource, epoch: int, index: int) -> Any:
    """Return batch number `index` of `epoch`."""
    return next(source.batches(epoch, start=index))


class Cursor:
    """Batch number n of an endless stream over a source, cheap when n grows by one.

    Args:
        source: Where the batches come from.
    """

    def __init__(self, source: BatchSource) -> None:
        self._source = source
        self._iterator: Iterator[Any] | None = None
        self._next = -1

    def at(self, n: int) -> Any:
        """Return batch n: batch ``n % len`` of epoch ``n // len``."""
        epoch, index = divmod(n, len(self._source))
        if self._iterator is None or n != self._next or index == 0:
            self._iterator = self._source.batches(epoch, start=index)
        self._next = n + 1
        return next(self._iterator)


@dataclass(frozen=True)
class _Entry:
    epoch: int
    index: int
    batch: Any


class ReplayBuffer:
    """The last few training batches, as the released code keeps them.

    A checkpoint stores positions only: batches are a pure function of them.

    Args:
        size: How many batches stay.
        eviction: ``fifo`` drops the oldest; ``random`` drops entry i (0 = oldest) of the older ones with probability
            proportional to i + 1, so that old batches stay longer, and never the newest.
    """

    def __init__(self, size: int, eviction: Literal["fifo", "random"]) -> None:
        self.size = size
        self.eviction = eviction
        self._entries: list[_Entry] = []

    def __len__(self) -> int:
        """Batches held."""
        return len(self._entries)

    def clear(self) -> None:
        """Forget all batches."""
        self._entries.clear()

    def append(self, epoch: int, index: int, batch: Any, rng: random.Random) -> None:
        """Add a batch and drop one if there are more than `size`."""
        self._entries.append(_Entry(epoch, index, batch))
        if len(self._entries) > self.size:
            older = range(len(self._entries) - 1)
            drop = 0 if self.eviction == "fifo" else rng.choices(older, weights=[i + 1 for i in older])[0]
            del self._entries[drop]

    def draw(self, rng: random.Random, otherwise: Any) -> Any:
        """Return one of the batches, each as likely; `otherwise` if there is none."""
        return rng.choice(self._entries).batch if self._entries else otherwise

    def positions(self) -> list[list[int]]:
        """Return (epoch, index) of every batch, oldest first."""
        return [[entry.epoch, entry.index] for entry in self._entries]

    def refill(self, positions: list[list[int]], source: BatchSource, device: torch.device) -> None:
        """Fetch the batches at `positions` again."""
        self._entries = [_Entry(e, i, to_device(batch_at(source, e, i), device)) for e, i in positions]
