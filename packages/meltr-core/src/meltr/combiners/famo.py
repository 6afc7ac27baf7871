r"""FAMO, Fast Adaptive Multitask Optimization (Liu, Feng, Stone, Liu, NeurIPS 2023).

With logits w, z = softmax(w) and D_t = l_t - min_t + eps, the backbone descends

    m(l) = c sum_t z_t log D_t,    c = (sum_t z_t / D_t)^-1 held constant,

whose task weights a_t = c z_t / D_t sum to 1. After the step, the losses of the same batch are evaluated again, and w
descends along

    J_softmax(w)^T (log D - log D'),

where D' is D after the step. So tasks whose loss fell less than the others' get more weight. The outer optimiser's
weight decay pulls w towards equal weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from meltr.combiners.base import SelfTrained, Step, as_names
from meltr.combiners.checks import one_per_loss, refuse_below_zero

EPSILON = 1e-8


class Famo(SelfTrained):
    """m(l) = c sum_t softmax(w)_t log(l_t - min_t + eps), with w trained so that all losses fall at the same rate.

    Args:
        losses: Names of the losses, primary first, or how many there are.
        min_losses: Lower bounds of the losses, one value per loss; None: 0.

    Raises:
        UserError: If there is not exactly one bound per loss.
    """

    sees_moved_weights = True
    min_losses: Tensor

    def __init__(self, losses: int | Sequence[str], *, min_losses: Sequence[float] | None = None) -> None:
        super().__init__(as_names(losses))
        bounds = [0.0] * len(self.names) if min_losses is None else min_losses
        self.register_buffer("min_losses", one_per_loss("min_losses", bounds, self.names))
        self.logits = nn.Parameter(torch.zeros(len(self.names)))

    def forward(self, losses: Tensor) -> Tensor:
        """Map losses of shape (T+1,), all above their bounds, to a scalar of shape ()."""
        gaps = self._gaps(losses)
        z = self.logits.softmax(0).to(losses)
        return (z * gaps.log()).sum() / (z / gaps).sum().detach()

    def settings(self) -> dict[str, Any]:
        """Return the lower bounds."""
        return {"min_losses": self.min_losses.tolist()}

    def prepare(self, losses: Tensor) -> None:
        """Reject losses, shape (T+1,), that are not above their bounds.

        Raises:
            UserError: If a loss is not above its bound.
        """
        self._check(self._gaps(losses))

    def own_gradients(self, step: Step) -> list[Tensor | None]:
        """Return J_softmax(w)^T (log D - log D'), shape (T+1,).

        Raises:
            UserError: If a loss is not above its bound.
        """
        before, after = self._gaps(step.losses.detach()), self._gaps(step.losses_again().detach())
        self._check(torch.minimum(before, after))
        z = self.logits.detach().softmax(0)
        fall = (before.log() - after.log()).to(z)
        return [z * (fall - (z * fall).sum())]

    def _gaps(self, losses: Tensor) -> Tensor:
        return losses - self.min_losses.to(losses) + EPSILON

    def _check(self, gaps: Tensor) -> None:
        message = "famo takes the logarithm of l - min_losses, which must be > 0"
        refuse_below_zero(gaps, self.names, message, "Give bounds below every loss: --set min_losses=...")


def from_options(losses: Sequence[str], **options: Any) -> Famo:
    """Build the combiner ``famo``."""
    return Famo(losses, **options)
