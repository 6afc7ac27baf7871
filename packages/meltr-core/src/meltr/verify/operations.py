"""Counts the work of a training step: floating-point operations, evaluations of the losses, backward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from meltr.autograd.flops import FlopCounter
from meltr.autograd.leaves import sees_every_pass
from meltr.context import RunContext
from meltr.engine.hooks import Hooks
from meltr.torch_private import backward_number


@dataclass(frozen=True)
class Operations:
    """The work that was done.

    Args:
        flops: Floating-point operations of matrix products, convolutions and attention (a multiplication and an
            addition count as 2), in forward, backward, double backward and forward mode. Elementwise operations,
            normalisation and optimisers are not counted. None if they could not be counted.
        with_graph: Evaluations of the losses with a graph.
        without_graph: Evaluations of the losses without a graph.
        forward_mode: Evaluations of the losses with dual numbers.
        backwards: Backward passes through the losses or to the backbone's parameters, of any kind.
        second_order: Those of them that build a graph or go through one.
    """

    flops: int | None
    with_graph: int
    without_graph: int
    forward_mode: int
    backwards: int
    second_order: int


class OperationCounter:
    """Counts evaluations of the losses and the backward passes through them.

    A backward pass is identified by autograd's number for it, which hooks on the losses and on the parameters read. A
    pass with ``create_graph`` also gets a hook on its initial gradients, because double backward computes J q by
    differentiating the graph with respect to them.
    """

    def __init__(self) -> None:
        self.with_graph = self.without_graph = self.forward_mode = 0
        self._at_losses: set[int] = set()
        self._at_parameters: set[int] = set()
        self._second: set[int] = set()

    @property
    def backwards(self) -> int:
        """Backward passes seen."""
        return len(self._at_losses | self._at_parameters | self._second)

    @property
    def second_order(self) -> int:
        """Backward passes that built a graph or went through one."""
        return len(self._second | (self._at_parameters - self._at_losses))

    def saw(self, losses: Iterable[Tensor]) -> None:
        """Record one evaluation of the losses."""
        parts = list(losses)
        if any(forward_ad.unpack_dual(part).tangent is not None for part in parts):
            self.forward_mode += 1
        elif torch.is_grad_enabled():
            self.with_graph += 1
        else:
            self.without_graph += 1
        for part in parts:
            if part.requires_grad:
                part.register_hook(self._loss_hook)

    @contextmanager
    def watching(self, parameters: Iterable[Tensor]) -> Iterator[None]:
        """Within this context, record backward passes that reach `parameters`."""
        handles = [each.register_hook(self._parameter_hook) for each in parameters if each.requires_grad]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _loss_hook(self, gradient: Tensor) -> None:
        self._at_losses.add(backward_number())
        if torch.is_grad_enabled():
            self._second.add(backward_number())
        if gradient.requires_grad:
            gradient.register_hook(self._seed_hook)

    def _seed_hook(self, gradient: Tensor) -> None:
        self._second.add(backward_number())

    @sees_every_pass
    def _parameter_hook(self, gradient: Tensor) -> None:
        self._at_parameters.add(backward_number())


class CountedHooks(Hooks):
    """The hooks of a run; while `counter` is set, it records every evaluation of the losses.

    Args:
        hooks: The hooks of the run.
    """

    def __init__(self, hooks: Hooks) -> None:
        vars(self).update(vars(hooks))
        self.counter: OperationCounter | None = None

    def losses(self, model: nn.Module, batch: Any, context: RunContext) -> dict[str, Tensor]:
        """Call `compute_task_losses`, with checks, and count the evaluation."""
        losses = super().losses(model, batch, context)
        if self.counter is not None:
            self.counter.saw(losses.values())
        return losses


def count(
    work: Callable[[], object], hooks: CountedHooks, parameters: Iterable[Tensor], *, flops: bool = True
) -> Operations:
    """Run `work` once and return the operations it took.

    Args:
        work: Evaluates losses only through `hooks`.
        hooks: The hooks of the run.
        parameters: The backbone's parameters.
        flops: Count floating-point operations; not possible for compiled models, whose kernels torch does not report.
    """
    counter = OperationCounter()
    hooks.counter = counter
    counted = None
    try:
        with counter.watching(parameters):
            if flops:
                with FlopCounter() as mode:
                    work()
                counted = mode.total
            else:
                work()
    finally:
        hooks.counter = None
    return Operations(
        counted,
        counter.with_graph,
        counter.without_graph,
        counter.forward_mode,
        counter.backwards,
        counter.second_order,
    )
