"""A moving average of the gradient alignment g."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class AveragedAlignment:
    """An exponential moving average of g over outer steps, without the bias of its start.

    One batch's g is itself noisy: an average over many has more of the sign of the population's.

    Args:
        momentum: Share of the past, in [0, 1); 0: g itself.

    Raises:
        ValueError: If `momentum` is out of range.
    """

    def __init__(self, momentum: float) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"average must be in [0, 1), got {momentum}")
        self._momentum = momentum
        self._sum: Tensor | None = None
        self._weight: Tensor | None = None

    def update(self, products: Tensor) -> Tensor:
        """Add g of an outer step, shape (T+1,), and return the average; a g that is not finite is returned as it is."""
        if self._momentum == 0:
            return products
        if self._sum is None or self._weight is None:
            self._sum, self._weight = torch.zeros_like(products), torch.zeros_like(products[0])
        share, finite = 1 - self._momentum, products.isfinite().all()
        total = self._momentum * self._sum.to(products) + share * products
        weight = self._momentum * self._weight.to(products) + share
        self._sum = torch.where(finite, total, self._sum.to(products))
        self._weight = torch.where(finite, weight, self._weight.to(products))
        return torch.where(finite, total / weight, products)

    def state_dict(self) -> dict[str, Any]:
        """Return the sums; empty before the first outer step, and without an average."""
        if self._sum is None or self._weight is None:
            return {}
        return {"sum": self._sum.cpu(), "weight": self._weight.cpu()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state that `state_dict` returned."""
        self._sum, self._weight = state.get("sum"), state.get("weight")
