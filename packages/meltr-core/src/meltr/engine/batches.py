"""Batches by position, for the held-out stream and for the replay buffer."""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from meltr.context import BatchSource
from meltr.errors import PluginError, UserError
from meltr.torch_private import tree_leaves


def to_device(batch: Any, device: torch.device) -> Any:
    """Move every tensor in a batch (nested dicts, lists, tuples) to `device`.

    On a GPU the copy runs beside the step before, from pinned memory and on its own stream; the host does not wait.
    """
    if isinstance(batch, torch.Tensor):
        return _to_gpu(batch, device) if device.type == "cuda" else batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def _to_gpu(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    if tensor.device.type != "cpu":
        return tensor.to(device, non_blocking=True)
    stream, now = _copy_stream(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(stream):
        moved = (tensor if tensor.is_pinned() else tensor.pin_memory()).to(device, non_blocking=True)
    now.wait_stream(stream)
    moved.record_stream(now)
    return moved


@functools.cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def count_examples(batch: Any) -> int:
    """Return the number of examples in a batch: the first dimension of its first tensor.

    Raises:
        PluginError: If there is no tensor.
    """
    for leaf in tree_leaves(batch):
        if isinstance(leaf, torch.Tensor) and leaf.dim():
            return leaf.shape[0]
    raise PluginError(
        f"Cannot count the examples of a batch of type {type(batch).__name__}: it contains no tensor.",
        "Implement the hook slice_batch, or leave accumulate and outer_fraction at 1.",
    )


def slice_batch(batch: Any, start: int, stop: int) -> Any:
    """Return the examples `start` to `stop` of a batch.

    Tensors whose first dimension is the number of examples are sliced, and so are lists of that length that contain no
    tensors (texts, names). Dicts, lists and tuples are searched recursively. Everything else is kept as it is.

    Args:
        batch: Nested dicts, lists and tuples.
        start: First example.
        stop: One past the last example.

    Raises:
        PluginError: If the number of examples cannot be determined.
    """
    return _sliced(batch, slice(start, stop), count_examples(batch))


def _sliced(batch: Any, part: slice, count: int) -> Any:
    if isinstance(batch, torch.Tensor):
        return batch[part] if batch.dim() and batch.shape[0] == count else batch
    if isinstance(batch, dict):
        return {key: _sliced(value, part, count) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        if isinstance(batch, list) and len(batch) == count and not any(isinstance(v, torch.Tensor) for v in batch):
            return batch[part]
        parts = [_sliced(value, part, count) for value in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch


def fingerprint(batch: Any) -> str:
    """Return a short text that differs between batches with different content."""
    seen = hashlib.blake2b(digest_size=8)
    for leaf in tree_leaves(batch):
        content = leaf.detach().cpu().contiguous() if isinstance(leaf, torch.Tensor) else None
        seen.update(repr(leaf).encode() if content is None else content.view(-1).view(torch.uint8).numpy().tobytes())
    return seen.hexdigest()


def batch_at(source: BatchSource, epoch: int, index: int) -> Any:
    """Return batch number `index` of `epoch`."""
    return next(source.batches(epoch, start=index))


class Cursor:
    """Batch n of an endless stream over a source; fast when n increases by one.

    Args:
        source: The source of the batches.
        first_epoch: First epoch of the stream; one far beyond training gives batches independent of training's.
    """

    def __init__(self, source: BatchSource, first_epoch: int = 0) -> None:
        self._source, self._first_epoch = source, first_epoch
        self._iterator: Iterator[Any] | None = None
        self._next = -1

    def at(self, n: int) -> Any:
        """Return batch n: batch ``n % len`` of epoch ``first_epoch + n // len``."""
        epoch, index = divmod(n, len(self._source))
        if self._iterator is None or n != self._next or index == 0:
            self._iterator = self._source.batches(self._first_epoch + epoch, start=index)
        self._next = n + 1
        return next(self._iterator)


@dataclass(frozen=True)
class _Entry:
    epoch: int
    index: int
    batch: Any


class ReplayBuffer:
    """The last few training batches, as in the released code.

    A checkpoint stores only positions, because a batch depends on its position alone.

    Args:
        size: Number of batches to keep.
        eviction: ``fifo`` drops the oldest batch. ``random`` drops entry i (0 = oldest) with probability proportional
            to i + 1, so that old batches stay longer; it never drops the newest.
    """

    def __init__(self, size: int, eviction: Literal["fifo", "random"]) -> None:
        self.size = size
        self.eviction = eviction
        self._entries: list[_Entry] = []

    def __len__(self) -> int:
        """Batches held."""
        return len(self._entries)

    def clear(self) -> None:
        """Remove all batches."""
        self._entries.clear()

    def append(self, epoch: int, index: int, batch: Any, rng: random.Random) -> None:
        """Add a batch, and drop one if there are more than `size`."""
        self._entries.append(_Entry(epoch, index, batch))
        if len(self._entries) > self.size:
            older = range(len(self._entries) - 1)
            drop = 0 if self.eviction == "fifo" else rng.choices(older, weights=[i + 1 for i in older])[0]
            del self._entries[drop]

    def draw(self, rng: random.Random, otherwise: Any) -> Any:
        """Return one of the batches, drawn uniformly; `otherwise` if the buffer is empty."""
        return rng.choice(self._entries).batch if self._entries else otherwise

    def positions(self) -> list[list[int]]:
        """Return (epoch, index) of every batch, oldest first."""
        return [[entry.epoch, entry.index] for entry in self._entries]

    def refill(self, positions: list[list[int]], source: BatchSource, device: torch.device) -> None:
        """Fetch the batches at `positions` again."""
        self._entries = [_Entry(e, i, to_device(batch_at(source, e, i), device)) for e, i in positions]


def micro_batches(batch: Any, number: int, cut: Callable[[Any, int, int], Any]) -> list[Any]:
    """Return the micro-batches of a batch.

    Args:
        batch: The batch.
        number: How many.
        cut: Batch, start, stop -> these examples of it.

    Raises:
        UserError: If the batch cannot be split into equal micro-batches.
    """
    if number == 1:
        return [batch]
    count = count_examples(batch)
    if count % number:
        raise UserError(
            f"A batch of {count} examples cannot be split into {number} equal micro-batches.",
            "Choose a batch_size that is a multiple of accumulate, and with outer_batch=cross of 2 * accumulate.",
        )
    size = count // number
    return [cut(batch, start, start + size) for start in range(0, count, size)]
