"""The outer step of scheme ``primary-step``: an inner step on the primary objective, whose gradient gives q."""

from __future__ import annotations

import torch
from torch import Tensor

from meltr.autograd.vectors import dense
from meltr.bilevel.outer_step import OuterStep
from meltr.bilevel.results import OuterResult
from meltr.errors import LoopError
from meltr.hypergradients.combiner_function import CombinerFunction
from meltr.hypergradients.loss_values import LossValues
from meltr.hypergradients.objective import regulariser_slope


class PrimaryInnerStep:
    """An inner step on the primary objective: its gradient is v, which costs no backward pass of its own.

    Args:
        function: m.
        outer: Trains the combiner.
        gamma: Weight of the regulariser (eq. 6).
    """

    def __init__(self, function: CombinerFunction, outer: OuterStep, gamma: float) -> None:
        self._function, self._outer, self._gamma = function, outer, gamma

    def take(self, losses: LossValues, step: int, share: float) -> tuple[Tensor, Tensor, OuterResult]:
        """Add the gradient of the primary objective to ``.grad``, and train the combiner with g = J v.

        Args:
            losses: l, with their graph, which is freed.
            step: Inner steps taken so far.
            share: Factor of the gradient: 1 / n for one of n micro-batches that come one call at a time.

        Returns:
            m(l), shape (), the weights of the losses in the inner gradient, shape (T+1,), and the outer step.

        Raises:
            LoopError: If the backward pass leaves no gradient, as with an optimiser that steps in it.
        """
        parameters = self._outer.parameters_of(losses)
        before = [None if p.grad is None else p.grad.detach().clone() for p in parameters]
        combined, weights = self.descend(losses, share)
        added = [_added(p, was) for p, was in zip(parameters, before, strict=True)]
        if all(part is None for part in added):
            raise LoopError(
                "scheme primary-step needs the gradient that the backward pass leaves in .grad, and there is none.",
                "With an optimiser that steps in the backward pass, use scheme aid-fp-lite.",
            )
        scale = 1.0 / share if losses.setup.scaler is None else 1.0 / (share * losses.setup.scaler.get_scale())
        direction = [None if part is None else part.mul_(scale) for part in added]
        return combined, weights, self._outer.take_along(losses, parameters, direction, step=step)

    def descend(self, losses: LossValues, share: float) -> tuple[Tensor, Tensor]:
        """Add the gradient of the primary objective to ``.grad``; return m(l) and the weights of the losses in it.

        Args:
            losses: l, with their graph, which is freed.
            share: Factor of the gradient.
        """
        combined, a = self._function.task_weights(losses.values)
        weights = torch.zeros_like(a)
        weights[:1].fill_(1.0)  # ``weights[0] = 1`` waits for the device
        slope = regulariser_slope(losses.values, combined, a, self._gamma)
        weights = weights if slope is None else weights + slope
        losses.backward(weights * share)
        return combined, weights


def _added(parameter: Tensor, before: Tensor | None) -> Tensor | None:
    """Return what a backward pass has added to ``.grad``, as a new tensor."""
    if parameter.grad is None:
        return None
    now = dense(parameter.grad.detach())
    assert now is not None
    return now.clone() if before is None else now - before
