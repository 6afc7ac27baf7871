"""AID-CG: approximate implicit differentiation by conjugate gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from meltr.autograd.vectors import Direction, add, scale
from meltr.hypergradients.hessian import HessianKind, hessian_product
from meltr.hypergradients.passes import Passes
from meltr.hypergradients.problem import OuterProblem
from meltr.hypergradients.schemes.base import HessianScheme, check_hessian, check_terms


@dataclass(frozen=True, kw_only=True)
class AIDCG(HessianScheme):
    """q with (H + damping I) q = v, after a fixed number of conjugate-gradient iterations.

    Grazzi et al., ICML 2020; Rajeswaran et al. (iMAML), NeurIPS 2019. Conjugate gradients assume a positive definite
    Hessian, and that of a network is indefinite. So the iteration stops at a direction of negative curvature (at the
    first iteration, this leaves q = v, AID-FP-Lite), and the iterate with the smallest residual is returned.

    Cost: the backward pass of v, and one Hessian-vector product per iteration (two forward and two backward passes by
    differences). Extra memory: six gradients.

    Args:
        terms: Number of iterations.
        damping: Added to the Hessian's diagonal.
        hessian: How Hessian-vector products are computed: ``difference`` of gradients, or ``double_backward``.

    Raises:
        ValueError: If a number is out of range.
    """

    name: ClassVar[str] = "aid-cg"
    terms: int = 3
    damping: float = 0.0
    hessian: HessianKind = "difference"

    def __post_init__(self) -> None:
        check_terms(self.terms)
        check_hessian(self.hessian)
        if not 0 <= self.damping < math.inf:
            raise ValueError(f"damping must be a number of at least 0, got {self.damping}")

    def most(self) -> Passes:
        """Return the bound of v and the Hessian products."""
        return Passes(forward=2 * self.terms, backward=1 + 4 * self.terms)

    def direction(self, problem: OuterProblem) -> Direction:
        """Return q."""
        v = problem.primary_gradient()
        residual, search = v, v
        size = float(problem.dot(v, v))
        iterate: Direction = [None] * len(v)
        best, smallest = v, size
        for number in range(self.terms):
            if size == 0.0:
                break
            curved = add(hessian_product(problem, search, by=self.hessian), search, alpha=self.damping)
            curvature = float(problem.dot(search, curved))
            if not curvature > 0.0:
                break
            length = size / curvature
            iterate = add(iterate, search, alpha=length)
            residual = add(residual, curved, alpha=-length)
            before, size = size, float(problem.dot(residual, residual))
            if number == 0 or size < smallest:
                best, smallest = iterate, size
            search = add(residual, scale(search, size / before))
        return best
