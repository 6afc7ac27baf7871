"""The choice that ``estimator=auto`` makes, and why."""

from __future__ import annotations

from torch import Tensor

from meltr.hypergradients.problem import Direction, OuterProblem
from meltr.hypergradients.products.forward import forward_mode
from meltr.hypergradients.products.per_task import per_task

TOLERANCE = 1e-2
"""Relative difference from one backward per task above which forward mode is not trusted (bf16 rounds at 4e-3)."""


def choose(problem: OuterProblem, direction: Direction, *, low_precision: bool) -> tuple[str, str, Tensor]:
    """Choose an estimator for this model at its first outer step.

    Two losses: per task, one extra backward gives everything. Otherwise forward mode where the model supports it,
    checked once against one backward per task; where it does not, central differences in float32, one backward per
    task in lower precision.

    Args:
        problem: The outer problem of the first outer step.
        direction: Its q.
        low_precision: True under autocast, where differences of losses are too coarse.

    Returns:
        Name of the estimator, the reason in a line, and g of shape (T+1,) for this step.
    """
    exact = per_task(problem, direction)
    if problem.size <= 2:
        return "per_task", f"{problem.size} losses: their gradients give the inner and outer step at once", exact
    fallback = "per_task" if low_precision else "difference"
    try:
        products = forward_mode(problem, direction)
    except (NotImplementedError, RuntimeError) as error:
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return fallback, f"no forward mode: {cause}", exact
    gap = float((products - exact).norm() / exact.norm().clamp_min(1e-300))
    if exact.norm() > 0 and not gap <= TOLERANCE * (5 if low_precision else 1):
        return fallback, f"forward mode differs from one backward per task by {gap:.1e}", exact
    return "forward", f"forward mode works (differs from one backward per task by {gap:.1e})", products
