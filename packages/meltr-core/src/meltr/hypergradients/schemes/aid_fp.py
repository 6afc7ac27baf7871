"""AID-FP: approximate implicit differentiation by a fixed-point (Neumann) series."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from meltr.autograd.vectors import Direction, add, scale
from meltr.hypergradients.hessian import HessianKind, hessian_product
from meltr.hypergradients.passes import Passes
from meltr.hypergradients.problem import OuterProblem
from meltr.hypergradients.schemes.base import HessianScheme, check_hessian, check_step, check_terms


@dataclass(frozen=True, kw_only=True)
class AIDFP(HessianScheme):
    """q = a sum_{j=0..i} (I - a H)^j v, which tends to H^-1 v as i grows if all ``|1 - a lambda|`` < 1.

    Lorraine, Vicol and Duvenaud, AISTATS 2020 (Algorithm 3); AuxiLearn (Navon et al., ICLR 2021), to which the MELTR
    paper compares, with a = 1e-4 and i = 3. AuxiLearn's code omits the factor a in front of the sum (``scaled=False``),
    so that q is nearly 4 v there: the direction of AID-FP-Lite.

    Cost: the backward pass of v, and i Hessian-vector products (two forward and two backward passes each by
    differences). Extra memory: four gradients.

    Args:
        terms: i, the number of Hessian-vector products.
        step: a, the step size of the series.
        scaled: Multiply the series by a, so that it converges to the inverse Hessian.
        hessian: How Hessian-vector products are computed: ``difference`` of gradients, or ``double_backward``.

    Raises:
        ValueError: If a number is out of range.
    """

    name: ClassVar[str] = "aid-fp"
    terms: int = 3
    step: float = 1e-4
    scaled: bool = True
    hessian: HessianKind = "difference"

    def __post_init__(self) -> None:
        check_terms(self.terms)
        check_step(self.step)
        check_hessian(self.hessian)

    def most(self) -> Passes:
        """Return the bound of v and the Hessian products."""
        return Passes(forward=2 * self.terms, backward=1 + 4 * self.terms)

    def direction(self, problem: OuterProblem) -> Direction:
        """Return q."""
        term = problem.primary_gradient()
        total = term
        for _ in range(self.terms):
            term = add(term, hessian_product(problem, term, by=self.hessian), alpha=-self.step)
            total = add(total, term)
        return scale(total, self.step) if self.scaled else total
