"""AID-FP-Lite, the paper's scheme (section 4.3, Table 8)."""

from __future__ import annotations

from meltr.hypergradients.problem import OuterProblem
from meltr.hypergradients.vectors import Direction


def aid_fp_lite(problem: OuterProblem) -> Direction:
    """Return q = v = grad_w L_pri: the inverse Hessian of implicit differentiation replaced by the identity.

    The fixed-point (Neumann) series of approximate implicit differentiation, cut after its first term.

    Cost: one backward (none if the rows of J are kept). Extra memory: one gradient.
    """
    return problem.primary_gradient()
