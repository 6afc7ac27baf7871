"""ITD with one look-ahead step: iterative differentiation through w' = w - alpha u (Meta-Weight-Net)."""

from __future__ import annotations

from meltr.hypergradients.problem import OuterProblem
from meltr.hypergradients.vectors import Direction


def itd(problem: OuterProblem) -> Direction:
    """Return q = alpha grad_w L_pri(w - alpha u).

    Shu et al. (Meta-Weight-Net), NeurIPS 2019; Liu et al. (Auto-Lambda), TMLR 2022; the ITD row of Table 8. The
    derivative of L_pri(w - alpha grad_w m(l(w))) by phi is -grad_phi (a . J q) with this q and J at w: exact, without a
    functional copy of the model or an unrolled graph. alpha may differ between parameters, as learning rates do.

    Options: `step` is alpha; default: the learning rate of each parameter in the inner optimiser.

    Cost: a backward for u, a forward and a backward at w' (for both batches if the primary loss has its own). Extra
    memory: a copy of the weights, two gradients.
    """
    step = problem.options.step
    rates = [step] * len(problem.parameters) if step is not None else problem.learning_rates()
    ahead: Direction = [
        None if part is None else part * -rate for part, rate in zip(problem.unified_gradient(), rates, strict=True)
    ]
    with problem.displaced(ahead) as move:
        move(1.0)
        found = problem.primary_gradient_now()
    return [None if part is None else part * rate for part, rate in zip(found, rates, strict=True)]
