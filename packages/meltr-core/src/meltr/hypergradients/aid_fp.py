"""AID-FP: approximate implicit differentiation by a fixed-point (Neumann) series."""

from __future__ import annotations

from meltr.hypergradients.hessian import hessian_product
from meltr.hypergradients.problem import OuterProblem
from meltr.hypergradients.vectors import Direction, add, scale

TERMS = 3
STEP = 1e-4


def aid_fp(problem: OuterProblem) -> Direction:
    """Return q = a sum_{j=0..i} (I - a H)^j v, which tends to H^-1 v as i grows, where all |1 - a lambda| < 1.

    Lorraine, Vicol and Duvenaud, AISTATS 2020 (Algorithm 3); AuxiLearn (Navon et al., ICLR 2021), which the MELTR paper
    compares with: a = 1e-4 and i = 3, and its code leaves the factor a in front out (``scaled=False``), so that q is
    nearly 4 v there: the direction of AID-FP-Lite.

    Options: `terms` is i (default 3), `step` is a (default 1e-4), `scaled`.

    Cost: the backward of v, and i Hessian-vector products (two forwards and two backwards each by differences). Extra
    memory: four gradients.
    """
    options = problem.options
    terms = TERMS if options.terms is None else options.terms
    step = STEP if options.step is None else options.step
    term = problem.primary_gradient()
    total = term
    for _ in range(terms):
        term = add(term, hessian_product(problem, term), alpha=-step)
        total = add(total, term)
    return scale(total, step) if options.scaled else total
