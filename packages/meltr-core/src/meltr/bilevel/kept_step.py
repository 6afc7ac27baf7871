"""The outer step of scheme ``primary-step``: an inner step on the primary objective, then a look at its effect."""

from __future__ import annotations

import torch
from torch import Tensor

from meltr.bilevel.outer_step import OuterStep
from meltr.bilevel.own_rule import OwnStep
from meltr.bilevel.results import OuterResult
from meltr.hypergradients.combiner_function import CombinerFunction
from meltr.hypergradients.loss_values import LossValues
from meltr.hypergradients.objective import regulariser_slope


class KeptStep:
    """An inner step on the primary objective, and the outer step that follows the optimiser's.

    Args:
        function: m.
        outer: Trains the combiner.
        gamma: Weight of the regulariser (eq. 6).
    """

    def __init__(self, function: CombinerFunction, outer: OuterStep, gamma: float) -> None:
        self._function, self._outer, self._gamma = function, outer, gamma
        self._waiting: OwnStep | None = None

    @property
    def waits(self) -> bool:
        """True between the inner step on the primary objective and the outer step that it leads to."""
        return self._waiting is not None

    def take(self, losses: LossValues, share: float) -> tuple[Tensor, Tensor]:
        """Add the gradient of the primary objective to ``.grad``; return m(l) and the weights of the losses in it.

        Args:
            losses: l, with their graph; the first ones of a window of micro-batches are evaluated again later.
            share: Factor of the gradient: 1 / n for one of n micro-batches that come one call at a time.
        """
        combined, a = self._function.task_weights(losses.values)
        weights = torch.zeros_like(a)
        weights[:1].fill_(1.0)  # ``weights[0] = 1`` waits for the device
        slope = regulariser_slope(losses.values, combined, a, self._gamma)
        weights = weights if slope is None else weights + slope
        if self._waiting is None:
            self._waiting = OwnStep(losses, [], after=True)
        losses.backward(weights * share)
        return combined, weights

    def finish(self) -> OuterResult | None:
        """Evaluate the losses after the optimiser's step, and train the combiner; None if no step waits for it."""
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return None
        before = waiting.losses
        return self._outer.conclude(before, (before - waiting.losses_again()).double())
