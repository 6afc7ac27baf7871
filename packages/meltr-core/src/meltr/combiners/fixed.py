"""Constant weights: multi-task learning, single-task learning, and Table 7 of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from meltr.combiners.base import Combiner, as_names


class FixedCombiner(Combiner):
    """m(l) = sum_t weight_t * l_t with constant weights.

    Args:
        losses: Names of the losses, primary first, or how many there are.
        weights: One weight per loss, in the same order.

    Raises:
        ValueError: If the number of weights is not the number of losses.
    """

    weights: Tensor
    _pure = True

    def __init__(self, losses: int | Sequence[str], weights: Sequence[float]) -> None:
        super().__init__(as_names(losses))
        if len(weights) != len(self.names):
            raise ValueError(f"{len(weights)} weights for {len(self.names)} losses {list(self.names)}")
        self.register_buffer("weights", torch.tensor([float(w) for w in weights]))

    def forward(self, losses: Tensor) -> Tensor:
        """Map losses of shape (T+1,) to their weighted sum of shape ()."""
        return (self.weights.to(losses) * losses).sum()

    def settings(self) -> dict[str, Any]:
        """Return the weights."""
        return {"weights": self.weights.tolist()}


def from_options(losses: Sequence[str], *, weights: Sequence[float]) -> FixedCombiner:
    """Build the combiner ``fixed``."""
    return FixedCombiner(losses, weights)


def plain_sum(losses: Sequence[str]) -> FixedCombiner:
    """Build the combiner ``sum``: every weight is 1 (multi-task learning)."""
    return FixedCombiner(losses, [1.0] * len(losses))


def primary_only(losses: Sequence[str]) -> FixedCombiner:
    """Build the combiner ``primary``: weight 1 for the primary loss, 0 for the others."""
    return FixedCombiner(losses, [1.0] + [0.0] * (len(losses) - 1))
