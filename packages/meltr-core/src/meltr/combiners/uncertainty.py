r"""Uncertainty weighting (Kendall, Gal, Cipolla, CVPR 2018): one learned variance per loss.

With s_t = log sigma_t^2, the log-variance of task t, the negative log-likelihood of independent tasks is

    m(l) = sum_t  exp(-s_t) / 2 * l_t  +  s_t / 2        (regression, eq. 7)
    m(l) = sum_t  exp(-s_t)     * l_t  +  s_t / 2        (classification, eq. 10)

Both the network and s minimise it. The two forms are equivalent: replacing s_t by s_t + log 2 turns the first into the
second plus a constant. They differ in the weight at s = 0, 1/2 or 1. So the starting weight is the option here, not the
form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from meltr.combiners.base import SelfTrained, Step, as_names
from meltr.combiners.checks import SHIFT, refuse_negative


class UncertaintyCombiner(SelfTrained):
    """m(l) = sum_t exp(-s_t) / 2 * l_t + s_t / 2, with s trained together with the backbone.

    A weight converges to weight_t * l_t = 1/2, so no loss may be negative: its weight would grow without
    bound.

    Args:
        losses: Names of the losses, primary first, or how many there are.
        start_weight: Weight exp(-s_t) / 2 of every loss at the start, > 0. 1 is s = 0 in the form for classification
            (and the plain sum), 0.5 is s = 0 in the form for regression.

    Raises:
        ValueError: If `start_weight` is not positive.
    """

    _pure = True

    def __init__(self, losses: int | Sequence[str], *, start_weight: float = 1.0) -> None:
        super().__init__(as_names(losses))
        if not start_weight > 0:
            raise ValueError(f"start_weight must be > 0, got {start_weight}")
        self.log_variances = nn.Parameter(torch.full((len(self.names),), -math.log(2 * start_weight)))

    @property
    def weights(self) -> Tensor:
        """The weights exp(-s) / 2, shape (T+1,)."""
        return (-self.log_variances).exp() / 2

    def forward(self, losses: Tensor) -> Tensor:
        """Map losses of shape (T+1,) to the negative log-likelihood of shape ()."""
        return (self.weights.to(losses) * losses + self.log_variances.to(losses) / 2).sum()

    def own_gradients(self, step: Step) -> list[Tensor | None]:
        """Return dm/ds_t = 1/2 - exp(-s_t) / 2 * l_t, shape (T+1,).

        Raises:
            UserError: If a loss is negative.
        """
        message = "uncertainty makes the weight of a negative loss grow without bound: losses must not be negative"
        refuse_negative(step.losses, self.names, message, SHIFT)
        weights = self.weights.detach()
        return [0.5 - weights * step.losses.to(weights)]


def from_options(losses: Sequence[str], **options: Any) -> UncertaintyCombiner:
    """Build the combiner ``uncertainty``."""
    return UncertaintyCombiner(losses, **options)
