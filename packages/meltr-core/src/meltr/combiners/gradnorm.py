r"""GradNorm (Chen, Badrinarayanan, Lee, Rabinovich, ICML 2018): weights that balance the norms of the gradients.

With w the weights and G_t = w_t ||grad_W l_t|| (Algorithm 1):

    r_t    = (l_t / l_t(0)) / mean_j (l_j / l_j(0))     relative inverse training rate
    L_grad = sum_t | G_t - mean(G) r_t^alpha |          the target mean(G) r_t^alpha is held constant

At every step w descends L_grad and is then rescaled to sum to T + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from meltr.combiners.base import SelfTrained, Step, as_names
from meltr.combiners.checks import SHIFT, one_per_loss, refuse_below_zero, refuse_negative

FLOOR = 1e-3
"""Smallest weight before rescaling, so that an optimiser step cannot reverse the sign of a task."""


class GradNorm(SelfTrained):
    """m(l) = sum_t w_t l_t with w trained to balance the norms of the weighted gradients.

    Args:
        losses: Names of the losses, primary first, or how many there are.
        alpha: Strength of the pull towards a common training rate; 0: equal norms.
        initial_losses: l(0), one value > 0 per loss, for example log C for a classification with C classes; None: the
            losses of the first step.

    Raises:
        UserError: If there is not exactly one initial value per loss, or a value is not positive.
    """

    initial: Tensor

    def __init__(
        self, losses: int | Sequence[str], *, alpha: float = 1.5, initial_losses: Sequence[float] | None = None
    ) -> None:
        super().__init__(as_names(losses))
        self.alpha = alpha
        self.initial_losses = initial_losses
        self.weights = nn.Parameter(torch.ones(len(self.names)))
        self.register_buffer("initial", torch.ones(len(self.names)))
        if initial_losses is not None:
            self._start_from(one_per_loss("initial_losses", initial_losses, self.names))

    def forward(self, losses: Tensor) -> Tensor:
        """Map losses of shape (T+1,) to their weighted sum of shape ()."""
        return (self.weights.to(losses) * losses).sum()

    def settings(self) -> dict[str, Any]:
        """Return alpha and the given initial losses."""
        return {"alpha": self.alpha, "initial_losses": self.initial_losses}

    def prepare(self, losses: Tensor) -> None:
        """Use the losses of the first step, shape (T+1,), as l(0), unless l(0) was given."""
        if self.initial_losses is None:
            self._start_from(losses)

    def own_gradients(self, step: Step) -> list[Tensor | None]:
        """Return dL_grad/dw_t = sign(G_t - mean(G) r_t^alpha) ||grad_W l_t||, shape (T+1,).

        None if a norm is not finite, which can happen in float16: the backbone skips such a step too.

        Raises:
            UserError: If a loss is negative: its training rate would have no power of alpha.
        """
        message = "gradnorm compares losses with their initial values: they must not be negative"
        refuse_negative(step.losses, self.names, message, SHIFT)
        weights = self.weights.detach()
        norms = step.gradient_norms().to(weights)
        weighted = weights * norms
        rates = step.losses.to(weights) / self.initial
        target = weighted.mean() * (rates / rates.mean()) ** self.alpha
        gradient = torch.sign(weighted - target) * norms
        return [gradient if bool(gradient.isfinite().all()) else None]

    @torch.no_grad()
    def after_update(self) -> None:
        """Rescale the weights to sum to T + 1, so that the backbone's learning rate keeps its meaning."""
        self.weights.clamp_(min=FLOOR)
        self.weights.mul_(len(self.names) / self.weights.sum())

    def _start_from(self, losses: Tensor) -> None:
        message = "gradnorm divides every loss by its initial value, which must be > 0"
        refuse_below_zero(losses, self.names, message, "Remove it (--set losses=...), or use --set initial_losses=...")
        self.initial.copy_(losses.detach())


def from_options(losses: Sequence[str], **options: Any) -> GradNorm:
    """Build the combiner ``gradnorm``."""
    return GradNorm(losses, **options)
