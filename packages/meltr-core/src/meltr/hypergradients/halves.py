"""Two halves of a batch with their graphs: one gives the direction q, the other the Jacobian J."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from meltr.hypergradients.loss_function import LossFunction
from meltr.hypergradients.loss_values import BatchValues, LossValues
from meltr.hypergradients.micro_batches import MicroBatches


class Halves(LossValues):
    """The losses of a batch as the mean over two halves, both evaluated already.

    Where v and J come from the same examples, the noise of v's gradient is in J too, and g_0 = |v|^2 is too large by
    the variance of v. With one half for each, g is unbiased.

    Args:
        first: The half that gives q.
        second: The half that gives J.
    """

    def __init__(self, first: LossValues, second: LossValues) -> None:
        self.setup, self.first, self.second = first.setup, first, second

    @classmethod
    def evaluated(cls, functions: Sequence[LossFunction]) -> Halves:
        """Evaluate an even number of micro-batches for the first time.

        Two of them keep their graphs for the inner gradient; more are evaluated again for it.

        Raises:
            ValueError: If their number is odd.
        """
        if len(functions) % 2 or not functions:
            raise ValueError(f"cross=True needs an even number of micro-batches, got {len(functions)}")
        middle = len(functions) // 2
        if middle == 1:
            first = functions[0].run(graph=True, averaging="later")
            return cls(first, functions[1].run(graph=True, averaging="backward"))
        return cls(MicroBatches.first(functions[:middle]), MicroBatches.first(functions[middle:]))

    @property
    def values(self) -> Tensor:
        """The losses l, shape (T+1,), detached: the mean over both halves and the processes."""
        return torch.stack([self.first.values, self.second.values]).mean(0)

    def micro_batches(self) -> Iterator[BatchValues]:
        """Yield the micro-batches of both halves."""
        yield from self.first.micro_batches()
        yield from self.second.micro_batches()

    def functions(self) -> Sequence[LossFunction]:
        """Return the loss functions of both halves."""
        return [*self.first.functions(), *self.second.functions()]

    def run(self, *, graph: bool, precise: bool = False) -> Halves:
        """Evaluate once more at the current weights; buffers and generators are restored."""
        return Halves(self.first.run(graph=graph, precise=precise), self.second.run(graph=graph, precise=precise))

    def backward(self, weights: Tensor) -> None:
        """Add J^T weights to ``.grad`` of every leaf; the graphs are freed.

        Raises:
            ValueError: If no loss depends on a leaf that requires a gradient.
        """
        if isinstance(self.first, BatchValues) and isinstance(self.second, BatchValues):
            self.second.backward(weights / 2, beside=self.first)
            return
        self.first.backward(weights / 2)
        self.second.backward(weights / 2)
