"""No hypergradient: the combiner is not trained (the row 'multi-task learning' of Table 8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from meltr.autograd.vectors import Direction
from meltr.hypergradients.passes import Passes
from meltr.hypergradients.problem import OuterProblem
from meltr.hypergradients.schemes.base import Scheme


@dataclass(frozen=True)
class NoDirection(Scheme):
    """q = 0: g is zero, and phi's gradient is zero or the direct term alone, if that is on.

    With a loss transformer that starts at the plain sum, this is multi-task learning. Cost: none.
    """

    name: ClassVar[str] = "none"

    def most(self) -> Passes:
        """Return the bound of nothing."""
        return Passes(forward=0, backward=0)

    def direction(self, problem: OuterProblem) -> Direction:
        """Return q."""
        return [None] * len(problem.parameters)
