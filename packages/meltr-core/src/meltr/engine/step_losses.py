"""The loss functions of a run's batches."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from meltr.autograd.graphed import GraphedLosses, cuda_record
from meltr.autograd.losses import Compute
from meltr.autograd.random_state import RandomState
from meltr.context import RunContext
from meltr.engine.batches import micro_batches
from meltr.engine.hooks import Hooks


class StepLosses:
    """Turns batches into loss functions, which evaluate the model or, with ``train.cuda_graphs``, replay recordings.

    Args:
        hooks: The adapter.
        model: The backbone.
        context: Context of the run.
        generators: Generators that the losses draw from, besides the global ones.
        log: Called with one line of text.
    """

    def __init__(
        self,
        hooks: Hooks,
        model: nn.Module,
        context: RunContext,
        generators: Sequence[torch.Generator],
        log: Callable[[str], None],
    ) -> None:
        self._hooks, self._model, self._context = hooks, model, context
        self.graphs: GraphedLosses | None = None
        if context.spec.train.cuda_graphs:
            snapshot = functools.partial(RandomState, {context.device}, generators)
            self.graphs = GraphedLosses(model, cuda_record(context.device, generators), snapshot, log)

    def of(self, batch: Any, context: RunContext) -> Compute:
        """Return the loss function of a batch.

        Args:
            batch: The batch, on the device.
            context: Context of the run, with the losses that are wanted.
        """
        if self.graphs is None:
            return lambda: self._hooks.losses(self._model, batch, context)
        return self.graphs.of(lambda each: self._hooks.losses(self._model, each, context), batch, context.losses)

    def parts(self, batch: Any, halves: int) -> list[Compute]:
        """Return the loss functions of the micro-batches of a batch.

        Args:
            batch: The batch, on the device.
            halves: 2 if their number must be even, else 1.

        Raises:
            UserError: If the batch cannot be split equally.
        """
        accumulate = self._context.spec.train.accumulate
        number = accumulate if accumulate % halves == 0 else halves * accumulate
        return [self.of(each, self._context) for each in micro_batches(batch, number, self._hooks.slice_batch)]
