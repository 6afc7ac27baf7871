"""g = J q by one backward per task."""

from __future__ import annotations

from torch import Tensor

from meltr.hypergradients.problem import OuterProblem
from meltr.hypergradients.vectors import Combination, Direction


def per_task(problem: OuterProblem, direction: Direction) -> Tensor:
    """Return g = J q, shape (T+1,), float64: the inner product of every task's gradient with q.

    Exact, with every kernel and precision. Cost: T+1 backwards. With few losses the rows of J are kept
    (`meltr.hypergradients.problem.ROWS_KEPT`), and v and the next inner gradient come from them without a backward of
    their own: with two losses that is the cheapest way of all. Extra memory: one gradient, or T+1 if they are kept; the
    graph is then freed by the backwards themselves.
    """
    if isinstance(direction, Combination) and direction.rows is problem.rows:
        return direction.products()
    sharing = problem.auxiliary.setup.sharing
    return sharing.products((problem.row(task) for task in range(problem.size)), direction)
