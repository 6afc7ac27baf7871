"""State that is fixed while a run is measured: batches on the device, and values to restore."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from meltr.context import BatchSource
from meltr.engine.batches import to_device
from meltr.torch_private import map_tensors

BATCHES = 4
"""Number of training batches that are kept on the device and used in turn."""

ENDLESS = 10**9


class Snapshot:
    """The values of some tensors, to be restored in place.

    Args:
        tensors: The tensors; they are not moved.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.pairs = [(live, live.detach().clone()) for live in tensors]

    def restore(self) -> None:
        """Restore the values."""
        with torch.no_grad():
            for live, saved in self.pairs:
                live.copy_(saved)

    def unchanged(self) -> bool:
        """Tell whether every bit is unchanged."""
        return all(torch.equal(live, saved) for live, saved in self.pairs)


class FixedBatches:
    """An endless epoch over a few batches on the device.

    Args:
        batches: The batches.
        size: Number of examples of the data set that they come from.
    """

    def __init__(self, batches: Sequence[Any], size: int) -> None:
        self._batches = list(batches)
        self.size = size

    @classmethod
    def of(cls, source: BatchSource, device: torch.device) -> FixedBatches:
        """Fetch the first batches of a source."""
        first = itertools.islice(source.batches(0), BATCHES)
        return cls([to_device(batch, device) for batch in first], source.size)

    def __len__(self) -> int:
        """Number of batches per epoch."""
        return ENDLESS

    def __getitem__(self, index: int) -> Any:
        """Return a batch."""
        return self._batches[index % len(self._batches)]

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Yield the batches in turn, endlessly."""
        for index in itertools.count(start):
            yield self[index]

    def double(self) -> FixedBatches:
        """Return the same batches with all floating-point tensors in float64."""
        return FixedBatches([_doubled(batch) for batch in self._batches], self.size)


def _doubled(batch: Any) -> Any:
    return map_tensors(lambda t: t.double() if t.is_floating_point() else t, batch)
