"""The cheapest outer step: one inner step of every cycle descends the primary loss alone, with the gradient v."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from meltr.autograd.vectors import Direction
from meltr.hypergradients.passes import Passes
from meltr.hypergradients.problem import OuterProblem
from meltr.hypergradients.schemes.base import Scheme


@dataclass(frozen=True)
class PrimaryStep(Scheme):
    """q = v = grad_w L_pri, as in AID-FP-Lite, and the inner step of that batch descends L_pri with the same gradient.

    So neither v nor g needs a backward pass of its own, and no graph is kept. g is that of AID-FP-Lite. In return, one
    inner step of every K does not see the combiner. Not in the paper.

    Cost: that of the estimator alone, one forward pass without a graph with one-sided differences. Extra memory: one
    gradient, after the graph is freed.
    """

    name: ClassVar[str] = "primary-step"
    takes_inner_step: ClassVar[bool] = True

    def most(self) -> Passes:
        """Return the bound of an inner step on the primary objective."""
        return Passes(forward=0, backward=1)

    def direction(self, problem: OuterProblem) -> Direction:
        """Refuse: the direction is the inner gradient, which is taken first.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError("the direction of primary-step is the gradient of an inner step")
