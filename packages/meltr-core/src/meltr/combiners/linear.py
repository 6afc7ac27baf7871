"""One learned weight per loss: the linear alternative to the loss transformer (Table 10), and Auto-Lambda."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from meltr.combiners.base import Combiner, as_names


class LinearCombiner(Combiner):
    """m(l) = sum_t weight_t * l_t with weights trained by the outer loop.

    Args:
        losses: Names of the losses, primary first, or how many there are.
        start_weight: Weight of every loss before the first outer step, > 0.
        positive: Keep the weights positive: weight = softplus(raw).

    Raises:
        ValueError: If `start_weight` is not positive.
    """

    learned = True
    _pure = True

    def __init__(self, losses: int | Sequence[str], *, start_weight: float = 1.0, positive: bool = True) -> None:
        super().__init__(as_names(losses))
        if not start_weight > 0:
            raise ValueError(f"start_weight must be > 0, got {start_weight}")
        self.positive = positive
        start = math.log(math.expm1(start_weight)) if positive else start_weight
        self.raw = nn.Parameter(torch.full((len(self.names),), start))

    @property
    def weights(self) -> Tensor:
        """The weights, shape (T+1,)."""
        return F.softplus(self.raw) if self.positive else self.raw

    def forward(self, losses: Tensor) -> Tensor:
        """Map losses of shape (T+1,) to their weighted sum of shape ()."""
        return (self.weights.to(losses) * losses).sum()

    def settings(self) -> dict[str, Any]:
        """Return how the weights are parametrised."""
        return {"positive": self.positive}


def from_options(losses: Sequence[str], *, start_weight: float, positive: bool) -> LinearCombiner:
    """Build the combiner ``linear``."""
    return LinearCombiner(losses, start_weight=start_weight, positive=positive)


def auto_lambda(losses: Sequence[str], *, start_weight: float) -> LinearCombiner:
    """Build the combiner ``auto-lambda``: unconstrained weights, which may become negative.

    Auto-Lambda (Liu, James, Davison, Johns, TMLR 2022) is this m, with the weights trained through one look-ahead step
    of the backbone. The scheme and the batches are settings of the run.
    """
    return LinearCombiner(losses, start_weight=start_weight, positive=False)
