"""Losses of a batch in micro-batches that do not fit into memory together: gradient accumulation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from meltr.hypergradients.loss_function import LossFunction
from meltr.hypergradients.loss_values import BatchValues, LossValues
from meltr.parallel.sharing import Averaging


class MicroBatches(LossValues):
    """Losses of a batch as the means over its micro-batches.

    m is not linear, so all micro-batches are first evaluated without a graph, the combiner sees the mean losses, and
    each micro-batch is evaluated again with its graph whenever a gradient is needed. Only one graph is alive at a time,
    and none while a whole gradient is held. To save memory, a whole batch can be treated as a single micro-batch: its
    first graph then serves the first gradient.

    Args:
        functions: The loss function of every micro-batch, each evaluated before.
        values: Their mean over micro-batches and processes, shape (T+1,).
        precise: Evaluate in full float32.
        ready: The single micro-batch with its graph, for the first gradient.
        has_buffers: False if no module has a buffer that could change, or another state that changes.
    """

    keeps_graph = False

    def __init__(
        self,
        functions: Sequence[LossFunction],
        values: Tensor,
        *,
        precise: bool = False,
        ready: BatchValues | None = None,
        has_buffers: bool = True,
    ) -> None:
        self.setup = functions[0].setup
        self._functions, self._values, self._precise, self._ready = functions, values, precise, ready
        self._has_buffers = has_buffers

    @classmethod
    def first(cls, functions: Sequence[LossFunction]) -> MicroBatches:
        """Evaluate micro-batches for the first time, several without a graph; buffers stay, generators advance.

        Raises:
            ValueError: If there are no micro-batches.
        """
        if not functions:
            raise ValueError("no loss function: expected one, or one per micro-batch")
        setup = functions[0].setup
        with setup.preserved_buffers():  # evaluated in sequence, so that each starts from the buffers of the one before
            found = [function.run(graph=len(functions) == 1) for function in functions]
            has_buffers = any(function.may_have_moved_buffers() for function in functions)
        if len(functions) == 1:
            return cls(functions, found[0].values, ready=found[0], has_buffers=has_buffers)
        local = torch.stack([each.local_values for each in found]).mean(0)
        return cls(functions, setup.sharing.mean(local), has_buffers=has_buffers)

    @classmethod
    def descended(cls, functions: Sequence[LossFunction], weights: Tensor) -> MicroBatches:
        """Evaluate each micro-batch once, and add its share of J^T weights to ``.grad`` at once, as plain accumulation.

        Args:
            functions: The loss function of every micro-batch, not evaluated before.
            weights: Weights of the losses, shape (T+1,), known before the losses are.

        Raises:
            ValueError: If no loss depends on a leaf that requires a gradient.
        """
        found, count = [], len(functions)
        for number, function in enumerate(functions):
            averaging: Averaging = "backward" if number == count - 1 else "later"
            batch = function.run(graph=True, averaging=averaging)
            found.append(batch.local_values)
            batch.backward(weights / count)
        return cls(functions, functions[0].setup.sharing.mean(torch.stack(found).mean(0)))

    @property
    def values(self) -> Tensor:
        """The losses l, shape (T+1,), detached: the mean over micro-batches and processes."""
        return self._values

    def micro_batches(self) -> Iterator[BatchValues]:
        """Yield every micro-batch, evaluated anew with its graph."""
        ready, self._ready = self._ready, None
        if ready is not None:
            yield ready
            return
        for function in self._functions:
            yield function.run(graph=True, replay=True, keep_buffers=True, precise=self._precise)

    def functions(self) -> Sequence[LossFunction]:
        """Return the loss functions of the micro-batches."""
        return self._functions

    def run(self, *, graph: bool, precise: bool = False) -> MicroBatches:
        """Evaluate the same micro-batches at the current weights; each graph is built when it is needed."""
        again = (f.run(graph=False, replay=True, keep_buffers=True, precise=precise) for f in self._functions)
        local = torch.stack([each.local_values for each in again]).mean(0)
        return MicroBatches(self._functions, self.setup.sharing.mean(local), precise=precise)

    def backward(self, weights: Tensor) -> None:
        """Add J^T weights to ``.grad``, one micro-batch after another; buffers change as in ordinary training.

        Raises:
            ValueError: If no loss depends on a leaf that requires a gradient.
        """
        self._ready = None
        last = len(self._functions) - 1
        for number, function in enumerate(self._functions):
            averaging: Averaging = "backward" if number == last else "later"
            batch = function.run(graph=True, replay=True, averaging=averaging)
            batch.backward(weights / len(self._functions))

    def move_buffers(self) -> None:
        """Update buffers as an ordinary step does: one forward pass per micro-batch, if the model has buffers."""
        if self._has_buffers:
            for function in self._functions:
                function.run(graph=False, replay=True)
