"""g = J q by one backward per task."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from meltr.autograd.vectors import Combination, Direction
from meltr.hypergradients.estimators.base import Estimator
from meltr.hypergradients.loss_values import LossValues
from meltr.hypergradients.problem import ROWS_KEPT, OuterProblem


class PerTask(Estimator):
    """g = J q as the inner products of every task's gradient with q.

    Exact, with every kernel and precision. Cost: T+1 backwards. With few losses the rows of J are kept
    (`meltr.hypergradients.problem.ROWS_KEPT`), and v and the next inner gradient come from them without a backward of
    their own: with two losses that is the cheapest way of all. Extra memory: one gradient, or T+1 if they are kept; the
    graph is then freed by the backwards themselves.
    """

    name: ClassVar[str] = "per_task"

    def keeps_rows(self, losses: LossValues) -> bool:
        """Tell whether there are few enough losses, and weights that are whole."""
        return losses.size <= ROWS_KEPT and losses.setup.sharing.whole_weights

    def __call__(self, problem: OuterProblem, direction: Direction) -> Tensor:
        """Return g = J q, shape (T+1,), float64; the direction is left as it is."""
        if isinstance(direction, Combination) and problem.rows is not None and problem.rows.made(direction):
            return direction.products()
        sharing = problem.auxiliary.setup.sharing
        return sharing.products((problem.row(task) for task in range(problem.size)), direction)
