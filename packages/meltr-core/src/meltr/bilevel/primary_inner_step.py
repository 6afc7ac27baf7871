"""The outer step of scheme ``primary-step``: an inner step on the primary objective, whose gradient gives q."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from meltr.autograd.vectors import dense
from meltr.bilevel.outer_step import OuterStep
from meltr.bilevel.results import OuterResult
from meltr.errors import LoopError
from meltr.hypergradients.combiner_function import CombinerFunction
from meltr.hypergradients.loss_values import LossValues
from meltr.hypergradients.objective import regulariser_slope
from meltr.torch_private import products_each


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
        if all(p.grad is None for p in parameters):
            raise LoopError(
                "scheme primary-step needs the gradient that the backward pass leaves in .grad, and there is none.",
                "With an optimiser that steps in the backward pass, use scheme aid-fp-lite.",
            )
        scale = 1.0 / share if losses.setup.scaler is None else 1.0 / (share * losses.setup.scaler.get_scale())
        direction = _added(parameters, before, scale)
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


def _added(parameters: Sequence[Tensor], before: Sequence[Tensor | None], scale: float) -> list[Tensor | None]:
    """Return what a backward pass has added to ``.grad``, times `scale`, as new tensors made by few kernels."""
    found: list[Tensor | None] = [None] * len(parameters)
    plain: dict[int, Tensor] = {}
    for place, (parameter, was) in enumerate(zip(parameters, before, strict=True)):
        now = None if parameter.grad is None else dense(parameter.grad.detach())
        if now is not None:
            plain[place] = now if was is None else now - was
    if plain:
        for place, part in zip(plain, products_each(list(plain.values()), scale), strict=True):
            found[place] = part
    return found
