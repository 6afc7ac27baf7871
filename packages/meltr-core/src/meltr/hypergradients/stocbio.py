"""StocBiO: the stochastic hypergradient of Ji, Yang and Liang (ICML 2021)."""

from __future__ import annotations

from meltr.errors import UserError
from meltr.hypergradients.hessian import hessian_product
from meltr.hypergradients.problem import OuterProblem
from meltr.hypergradients.vectors import Direction, add, scale

TERMS = 3
STEP = 0.5


def stocbio(problem: OuterProblem) -> Direction:
    """Return q = eta sum_{j=0..Q} prod_{i=1..j} (I - eta H_i) v with an independent batch for every factor (eq. 6).

    The expectation of the product is the product of the expectations only because the batches are independent. The
    released code of StocBiO uses one batch for all factors and leaves out the term j = 0; this is the paper.

    Options: `terms` is Q (default 3), `step` is eta (default 0.5). With eta times the largest eigenvalue of H above 2
    the series diverges.

    Cost: the backward of v, and Q Hessian-vector products (two forwards and two backwards each by differences), each on
    a batch of its own. Extra memory: four gradients.

    Raises:
        UserError: If there are no independent batches.
    """
    options = problem.options
    terms = TERMS if options.terms is None else options.terms
    step = STEP if options.step is None else options.step
    if problem.others is None and terms > 0:
        raise UserError(
            "scheme 'stocbio' needs an independent batch for every factor of its series.",
            "In a loop of your own, pass others=lambda i: (the losses on another batch) to Bilevel.backward.",
        )
    term = problem.primary_gradient()
    total = term
    for number in range(terms):
        assert problem.others is not None
        term = add(term, hessian_product(problem, term, problem.others(number)), alpha=-step)
        total = add(total, term)
    return scale(total, step)
