"""One outer problem: everything a scheme needs to choose its direction q."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from meltr.hypergradients.replay import LossEvaluation

Direction = list[Tensor | None]
"""A vector in parameter space: one tensor a parameter, None where it is zero."""

ROWS_KEPT = 3
"""Up to this many losses, all rows of J are kept: they give u, v and g at once, for (T+1) gradients of memory."""


@dataclass
class OuterProblem:
    """The outer problem at the current w.

    Args:
        parameters: The trainable parameters w, each once.
        auxiliary: The losses l(w) that the combiner sees; J is their Jacobian.
        combined: m(l), shape ().
        sensitivities: a = dm/dl, shape (T+1,).
        gamma: Weight of the regulariser of eq. 6.
        primary: The primary loss on another batch; None if it is ``auxiliary.parts[0]`` (shared batch).
        keep_rows: Compute the gradient of every task once and keep it (see `ROWS_KEPT`).
    """

    parameters: Sequence[Tensor]
    auxiliary: LossEvaluation
    combined: Tensor
    sensitivities: Tensor
    gamma: float = 0.0
    primary: LossEvaluation | None = None
    keep_rows: bool = False
    _rows: list[Direction] | None = field(default=None, repr=False)

    @property
    def size(self) -> int:
        """Number of losses, T+1."""
        return len(self.auxiliary.parts)

    @property
    def rows(self) -> list[Direction] | None:
        """The rows of J if they were kept: row t is the gradient of task t."""
        return self._rows

    def row(self, task: int) -> Direction:
        """Return the gradient of task number `task`: one backward, the graph stays."""
        if self._rows is not None:
            return self._rows[task]
        return weighted_gradient([self.auxiliary.parts[task]], [None], self.parameters)

    def regulariser_weights(self) -> Tensor:
        """Return gamma * sign(m(l) - sum(l)) * (a - 1), shape (T+1,): the regulariser's derivative by l (eq. 6)."""
        values = self.auxiliary.values
        return self.gamma * torch.sign(self.combined - values.sum()) * (self.sensitivities - 1)

    def primary_gradient(self) -> Direction:
        """Return v = grad_w L_pri with L_pri = l_0 + gamma |m(l) - sum(l)|: one weighted backward, the graph stays."""
        if self.keep_rows and self._rows is None:
            self._rows = [self.row(task) for task in range(self.size)]
        if self.primary is not None:
            own = weighted_gradient(self.primary.parts[:1], [None], self.parameters)
            return own if self.gamma == 0 else add(own, self.combine(self.regulariser_weights()))
        if self.gamma == 0:
            return self.row(0)
        weights = self.regulariser_weights()
        return self.combine(torch.cat([weights[:1] + 1, weights[1:]]))

    def combine(self, weights: Tensor) -> Direction:
        """Return J^T weights for weights of shape (T+1,): from the kept rows, or by one weighted backward."""
        if self._rows is None:
            return weighted_gradient(self.auxiliary.parts, list(weights), self.parameters)
        total: Direction = [None] * len(self.parameters)
        for weight, row in zip(weights, self._rows, strict=True):
            total = add(total, [None if part is None else part * weight for part in row])
        return total


def weighted_gradient(
    losses: Sequence[Tensor], weights: Sequence[Tensor | None], parameters: Sequence[Tensor]
) -> Direction:
    """Return the gradient of sum_t weights_t * losses_t by one backward pass; the graph stays.

    Args:
        losses: 0-dim tensors; those without a graph contribute nothing.
        weights: One 0-dim tensor a loss; None means 1.
        parameters: What to differentiate by; unused ones get None.
    """
    live = [(loss, weight) for loss, weight in zip(losses, weights, strict=True) if loss.requires_grad]
    if not live:
        return [None] * len(parameters)
    outputs = [loss for loss, _ in live]
    seeds = [torch.ones_like(loss) if weight is None else weight.to(loss) for loss, weight in live]
    return list(torch.autograd.grad(outputs, parameters, seeds, retain_graph=True, allow_unused=True))


def add(one: Direction, other: Direction) -> Direction:
    """Return the sum of two directions."""
    return [b if a is None else a if b is None else a + b for a, b in zip(one, other, strict=True)]


def dot(one: Direction, other: Direction) -> Tensor:
    """Return the inner product of two directions in float64, shape ()."""
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    if not pairs:
        return torch.zeros((), dtype=torch.float64)
    products = [torch.sum(a.flatten() * b.flatten(), dtype=torch.float64) for a, b in pairs]
    return torch.stack([product.to(products[0].device) for product in products]).sum()


def norm(direction: Direction) -> Tensor:
    """Return the Euclidean norm of a direction in float64, shape ()."""
    return dot(direction, direction).sqrt()
