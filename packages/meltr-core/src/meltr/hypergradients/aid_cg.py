"""AID-CG: approximate implicit differentiation by conjugate gradients."""

from __future__ import annotations

from meltr.hypergradients.hessian import hessian_product
from meltr.hypergradients.problem import OuterProblem
from meltr.hypergradients.vectors import Direction, add, scale

TERMS = 3


def aid_cg(problem: OuterProblem) -> Direction:
    """Return q with (H + damping I) q = v after a fixed number of conjugate-gradient iterations.

    Grazzi et al., ICML 2020; Rajeswaran et al. (iMAML), NeurIPS 2019. The Hessian of a network is indefinite, for which
    conjugate gradients are not made: the iteration stops when it meets a direction of negative curvature (at the first
    iteration that leaves q = v, AID-FP-Lite), and the iterate with the smallest residual is returned.

    Options: `terms` is the number of iterations (default 3), `damping` is added to the Hessian's diagonal.

    Cost: the backward of v, and a Hessian-vector product an iteration (two forwards and two backwards by differences).
    Extra memory: six gradients.
    """
    options = problem.options
    v = problem.primary_gradient()
    residual, search = v, v
    size = float(problem.dot(v, v))
    iterate: Direction = [None] * len(v)
    best, smallest = v, size
    for number in range(TERMS if options.terms is None else options.terms):
        if size == 0.0:
            break
        curved = add(hessian_product(problem, search), search, alpha=options.damping)
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
