"""SAMA: a hypergradient that takes the inner optimiser's step into account (Choe et al., NeurIPS 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from meltr.autograd.vectors import Direction
from meltr.errors import UserError
from meltr.hypergradients.passes import Passes
from meltr.hypergradients.problem import OuterProblem
from meltr.hypergradients.schemes.base import Scheme
from meltr.optim.step_derivatives import KNOWN, step_derivative_of


@dataclass(frozen=True)
class SAMA(Scheme):
    """q = lr D v, where lr D is the elementwise derivative of the inner optimiser's step with respect to the gradient.

    "Making Scalable Meta Learning Practical", section 3.2: w' = w - step(u), so dL_pri(w')/dphi is
    -grad_phi <u, lr D v>, with the base Jacobian replaced by the identity as in AID-FP-Lite. Not in the MELTR paper.
    Every optimiser has its own derivative (`meltr.optim.step_derivatives`). v is taken at w, as in AID-FP-Lite; D does
    not include gradient clipping, not even BertAdam's.

    Cost: one backward pass for v and one for u. Extra memory: three gradients.
    """

    name: ClassVar[str] = "sama"

    def most(self) -> Passes:
        """Return the bound of the backward passes of v and u."""
        return Passes(forward=0, backward=2)

    def direction(self, problem: OuterProblem) -> Direction:
        """Return q.

        Raises:
            UserError: If the inner optimiser or the derivative of its step is unknown, or a weight is complex.
        """
        optimizer = problem.inner_optimizer
        if optimizer is None:
            raise UserError(
                "scheme 'sama' differentiates the inner optimiser's step, but no inner optimiser was given.",
                f"Pass inner_optimizer=... to Bilevel: {KNOWN}.",
            )
        derivative = step_derivative_of(optimizer)
        if any(parameter.is_complex() for parameter in problem.parameters):
            raise UserError(
                "scheme 'sama' does not support complex weights: the optimiser's step is not elementwise there.",
                "Use another scheme: --set scheme=aid-fp-lite.",
            )
        problem.learning_rates()  # every parameter must belong to the optimiser
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        v = problem.primary_gradient()
        u = problem.unified_gradient()
        found: list[Tensor | None] = []
        for parameter, own, gradient in zip(problem.parameters, v, u, strict=True):
            if own is None:
                found.append(None)
                continue
            state = optimizer.state.get(parameter, {})
            found.append(own * derivative(parameter, groups[id(parameter)], state, gradient))
        return found
