"""StocBiO: the stochastic hypergradient of Ji, Yang and Liang (ICML 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from meltr.autograd.vectors import Direction, add, scale
from meltr.errors import UserError
from meltr.hypergradients.hessian import HessianKind, hessian_product
from meltr.hypergradients.passes import Passes
from meltr.hypergradients.problem import OuterProblem
from meltr.hypergradients.schemes.base import HessianScheme, check_hessian, check_step, check_terms


@dataclass(frozen=True, kw_only=True)
class StocBiO(HessianScheme):
    """q = eta sum_{j=0..Q} prod_{i=1..j} (I - eta H_i) v with an independent batch for every factor.

    Equation 6 of the StocBiO paper (not of the MELTR paper, whose eq. 6 is the regulariser). The expectation of the
    product equals the product of the expectations only because the batches are independent. StocBiO's released code
    uses one batch for all factors and drops the term j = 0; this class follows the paper. The series diverges if eta
    times the largest eigenvalue of H exceeds 2.

    Cost: the backward pass of v, and Q Hessian-vector products (two forward and two backward passes each by
    differences), each on a batch of its own. Extra memory: four gradients.

    Args:
        terms: Q, the number of Hessian-vector products and of independent batches.
        step: eta, the step size of the series.
        hessian: How Hessian-vector products are computed: ``difference`` of gradients, or ``double_backward``.

    Raises:
        ValueError: If a number is out of range.
    """

    name: ClassVar[str] = "stocbio"
    terms: int = 3
    step: float = 0.5
    hessian: HessianKind = "difference"

    def __post_init__(self) -> None:
        check_terms(self.terms)
        check_step(self.step)
        check_hessian(self.hessian)

    @property
    def independent_batches(self) -> int:
        """One batch per factor."""
        return self.terms

    def most(self) -> Passes:
        """Return the bound of v and the Hessian products on other batches."""
        return Passes(forward=3 * self.terms, backward=1 + 4 * self.terms)

    def direction(self, problem: OuterProblem) -> Direction:
        """Return q.

        Raises:
            UserError: If there are no independent batches.
        """
        if problem.others is None and self.terms > 0:
            raise UserError(
                "scheme 'stocbio' needs an independent batch for every factor of its series.",
                "Pass others=... to Bilevel.backward: a function from i to the losses on independent batch i.",
            )
        term = problem.primary_gradient()
        total = term
        for number in range(self.terms):
            assert problem.others is not None
            curved = hessian_product(problem, term, by=self.hessian, losses=problem.others(number))
            term = add(term, curved, alpha=-self.step)
            total = add(total, term)
        return scale(total, self.step)
