"""g = J q by one backward pass per task."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from meltr.autograd.vectors import Combination, Direction
from meltr.hypergradients.estimators.base import Estimator
from meltr.hypergradients.loss_values import LossValues
from meltr.hypergradients.passes import Passes
from meltr.hypergradients.problem import ROWS_KEPT, OuterProblem


class PerTask(Estimator):
    """g = J q as the inner products of every task's gradient with q.

    Exact, with every kernel and precision. Cost: T+1 backward passes. With few losses the rows of J are kept
    (`meltr.hypergradients.problem.ROWS_KEPT`), and v and the next inner gradient are computed from them without another
    backward pass; with two losses this is the cheapest way. Extra memory: one gradient, or T+1 if the rows are kept, in
    which case the backward passes free the graph.
    """

    name: ClassVar[str] = "per_task"

    def keeps_rows(self, losses: LossValues) -> bool:
        """Tell whether there are few enough losses, and the weights are not sharded."""
        return losses.size <= ROWS_KEPT and losses.setup.sharing.whole_weights

    def most(self, size: int) -> Passes:
        """Return the bound of one backward pass per task."""
        return Passes(forward=0, backward=size)

    def __call__(self, problem: OuterProblem, direction: Direction) -> Tensor:
        """Return g = J q, shape (T+1,), float64; the direction is not changed."""
        if isinstance(direction, Combination) and problem.rows is not None and problem.rows.made(direction):
            return direction.products()
        sharing = problem.auxiliary.setup.sharing
        return sharing.products((problem.row(task) for task in range(problem.size)), direction)
