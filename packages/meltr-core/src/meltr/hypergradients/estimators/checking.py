"""Comparison of an estimator with one backward pass per task, whose g is exact."""

from __future__ import annotations

import math
import warnings

from torch import Tensor

from meltr.autograd.vectors import Direction
from meltr.hypergradients.estimators.base import Estimator
from meltr.hypergradients.estimators.per_task import PerTask
from meltr.hypergradients.problem import OuterProblem
from meltr.hypergradients.setup import ModelSetup


def relative_gap(products: Tensor, exact: Tensor) -> float:
    """Return the relative difference of g from the exact one, both of shape (T+1,); 0 if that is zero."""
    return float((products - exact).norm() / exact.norm().clamp_min(1e-300)) if exact.norm() > 0 else 0.0


def allowed(estimator: Estimator, setup: ModelSetup) -> float:
    """Return the relative difference that is accepted of an estimator; bf16 alone rounds at 4e-3."""
    tolerance = math.inf if estimator.tolerance is None else estimator.tolerance
    return tolerance * (5 if setup.low_precision else 1)


def checked(estimator: Estimator, problem: OuterProblem, direction: Direction) -> Tensor:
    """Return g as the estimator computes it, shape (T+1,); warn if it differs from one backward pass per task.

    An estimator that the user names is not exchanged. Only a backward pass treats what the losses compute from w under
    ``torch.no_grad`` as a constant, and forward mode sees only weights that a module or the loop names.

    Args:
        estimator: The estimator.
        problem: The outer problem.
        direction: q; its contents may be overwritten.
    """
    exact = PerTask()(problem, direction)  # before the estimator overwrites the direction
    products = estimator(problem, direction)
    gap = relative_gap(products, exact)
    if bool(exact.isfinite().all()) and not gap <= allowed(estimator, problem.auxiliary.setup):
        warnings.warn(
            f"estimator={estimator.name} is {gap:.1%} off: its g differs that much from one backward pass per task. "
            "Use --set estimator=auto or per_task.",
            RuntimeWarning,
            stacklevel=2,
        )
    return products
