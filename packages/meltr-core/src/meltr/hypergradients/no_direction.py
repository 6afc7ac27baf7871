"""No hypergradient: the combiner stays as it is (the row 'multi-task learning' of Table 8)."""

from __future__ import annotations

from meltr.hypergradients.problem import OuterProblem
from meltr.hypergradients.vectors import Direction


def no_direction(problem: OuterProblem) -> Direction:
    """Return q = 0: g is zero, and so is phi's gradient (but for the direct term, if that is on).

    With a loss transformer that starts at the plain sum, this is multi-task learning. Cost: none.
    """
    return [None] * len(problem.parameters)
