"""ITD with one look-ahead step: iterative differentiation through w' = w - alpha u (Meta-Weight-Net)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from meltr.autograd.vectors import Direction
from meltr.hypergradients.passes import Passes
from meltr.hypergradients.problem import OuterProblem
from meltr.hypergradients.schemes.base import Scheme, check_step


@dataclass(frozen=True, kw_only=True)
class ITD(Scheme):
    """q = alpha grad_w L_pri(w - alpha u).

    Shu et al. (Meta-Weight-Net), NeurIPS 2019; Liu et al. (Auto-Lambda), TMLR 2022; the ITD row of Table 8. The
    derivative of L_pri(w - alpha grad_w m(l(w))) with respect to phi is -grad_phi (a . J q) with this q and J at w:
    exact, without a functional copy of the model or an unrolled graph. alpha may differ between parameters, as learning
    rates do.

    Cost: a backward pass for u, and a forward and a backward pass at w' (on both batches if the primary loss has its
    own). Extra memory: a copy of the weights and two gradients.

    Args:
        step: alpha; None: each parameter's learning rate in the inner optimiser.

    Raises:
        ValueError: If `step` is not a positive number.
    """

    name: ClassVar[str] = "itd"
    step: float | None = None

    def __post_init__(self) -> None:
        if self.step is not None:
            check_step(self.step)

    def most(self) -> Passes:
        """Return the bound of the backward passes of v and u, and an evaluation with its gradient."""
        return Passes(forward=1, backward=3)

    def direction(self, problem: OuterProblem) -> Direction:
        """Return q.

        Raises:
            UserError: If there is no step size, and the inner optimiser is unknown.
        """
        step = self.step
        rates = [step] * len(problem.parameters) if step is not None else problem.learning_rates()
        ahead: Direction = [
            None if part is None else part * -rate for part, rate in zip(problem.unified_gradient(), rates, strict=True)
        ]
        with problem.displaced(ahead) as move:
            move(1.0)
            found = problem.primary_gradient_now()
        return [None if part is None else part * rate for part, rate in zip(found, rates, strict=True)]
