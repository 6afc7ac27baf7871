"""AID-FP-Lite, the paper's scheme (section 4.3, Table 8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from meltr.autograd.vectors import Direction
from meltr.hypergradients.passes import Passes
from meltr.hypergradients.problem import OuterProblem
from meltr.hypergradients.schemes.base import Scheme


@dataclass(frozen=True)
class AIDFPLite(Scheme):
    """q = v = grad_w L_pri: the inverse Hessian of implicit differentiation is replaced by the identity.

    This is the fixed-point (Neumann) series of approximate implicit differentiation, cut after its first term.

    Cost: one backward pass (none if the rows of J are kept). Extra memory: one gradient.
    """

    name: ClassVar[str] = "aid-fp-lite"

    def most(self) -> Passes:
        """Return the bound of the backward pass of v."""
        return Passes(forward=0, backward=1)

    def direction(self, problem: OuterProblem) -> Direction:
        """Return q."""
        return problem.primary_gradient()
