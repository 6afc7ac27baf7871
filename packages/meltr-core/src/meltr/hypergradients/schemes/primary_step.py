"""The cheapest outer step: one inner step of every cycle descends the primary loss alone, and is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from meltr.autograd.vectors import Direction
from meltr.hypergradients.problem import OuterProblem
from meltr.hypergradients.schemes.base import Scheme


@dataclass(frozen=True)
class PrimaryStep(Scheme):
    """g_t = l_t(w) - l_t(w'), where w' is w after one step of the inner optimiser on the primary objective.

    The step is an ordinary inner step of the run, with the learning rate, momentum and preconditioning of the inner
    optimiser, and it is kept. So q = w - w' comes for nothing, and g, J q up to second order, is the drop of every loss
    on the batch of that step. Not in the paper.

    Cost: one forward pass without a graph. Extra memory: none. One inner step of K does not see the combiner.
    """

    name: ClassVar[str] = "primary-step"
    takes_inner_step: ClassVar[bool] = True

    def direction(self, problem: OuterProblem) -> Direction:
        """Refuse: the inner optimiser takes the step.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError("the direction of primary-step is the step that the inner optimiser takes")
