r"""Dynamic Weight Average (Liu, Johns, Davison, CVPR 2019): more weight for losses that decrease slowly.

With L_t(e) the mean of loss t over epoch e and K = T + 1 losses, the weights of epoch e are

    lambda_t(e) = K softmax_t(r_t / temperature),    r_t = L_t(e - 1) / L_t(e - 2)

and 1 in the first two epochs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from meltr.combiners.base import SelfTrained, Step, as_names
from meltr.combiners.checks import SHIFT, refuse_negative


class DynamicWeightAverage(SelfTrained):
    """m(l) = sum_t lambda_t l_t with weights that are recomputed every epoch; nothing is trained.

    The running means are buffers, saved with the weights, so that a run can resume exactly within an epoch.

    Args:
        losses: Names of the losses, primary first, or how many there are.
        temperature: Softness of the weights, > 0; 2 in the paper.

    Raises:
        ValueError: If `temperature` is not positive.
    """

    mean: Tensor
    steps: Tensor
    epochs: Tensor
    history: Tensor

    def __init__(self, losses: int | Sequence[str], *, temperature: float = 2.0) -> None:
        super().__init__(as_names(losses))
        if not temperature > 0:
            raise ValueError(f"temperature must be > 0, got {temperature}")
        self.temperature = temperature
        self.register_buffer("mean", torch.zeros(len(self.names)))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("epochs", torch.zeros((), dtype=torch.int64))
        self.register_buffer("history", torch.ones(2, len(self.names)))

    @property
    def weights(self) -> Tensor:
        """The weights lambda of this epoch, shape (T+1,); they sum to T+1."""
        older, newer = self.history
        # A loss that stays at 0 counts as unchanged. A loss that rises from 0 counts as the slowest of all.
        rates = torch.nan_to_num(newer / older, nan=1.0)
        weights = len(self.names) * (rates / self.temperature).softmax(0)
        return torch.where(self.epochs < 2, torch.ones_like(weights), weights)

    def forward(self, losses: Tensor) -> Tensor:
        """Map losses of shape (T+1,) to their weighted sum of shape ()."""
        return (self.weights.to(losses) * losses).sum()

    def settings(self) -> dict[str, Any]:
        """Return the temperature."""
        return {"temperature": self.temperature}

    def own_gradients(self, step: Step) -> list[Tensor | None]:
        """Add the losses of this step to the mean of the epoch; there is nothing to train."""
        self.steps += 1
        self.mean += (step.losses.detach().to(self.mean) - self.mean) / self.steps
        return []

    def end_epoch(self) -> None:
        """Store the mean of this epoch as the newer of the two means that determine the weights.

        Raises:
            UserError: If the mean of a loss is negative.
        """
        if int(self.steps) == 0:
            return
        message = "dwa divides the mean of a loss by that of the epoch before: it must not be negative"
        refuse_negative(self.mean, self.names, message, SHIFT)
        self.history.copy_(torch.stack([self.history[1], self.mean]))
        self.epochs += 1
        self.mean.zero_()
        self.steps.zero_()


def from_options(losses: Sequence[str], **options: Any) -> DynamicWeightAverage:
    """Build the combiner ``dwa``."""
    return DynamicWeightAverage(losses, **options)
