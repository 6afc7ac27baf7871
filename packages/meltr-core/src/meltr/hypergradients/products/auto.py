"""The choice that ``estimator=auto`` makes, and why."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from meltr.hypergradients.graph import shared_backwards
from meltr.hypergradients.problem import ROWS_KEPT, OuterProblem
from meltr.hypergradients.products.difference import CentralDifference
from meltr.hypergradients.products.forward import forward_mode
from meltr.hypergradients.products.one_sided import OneSidedDifference
from meltr.hypergradients.products.per_task import per_task
from meltr.hypergradients.vectors import Direction

TOLERANCE = 1e-2
"""Relative difference from one backward per task above which forward mode is not trusted (bf16 rounds at 4e-3)."""

DIFFERENCE_TOLERANCE = 5e-2
"""The same for central differences, whose error reaches a few per cent in deep networks with kinks."""

BACKWARDS = 2.5
"""One backward per task pays while all of them together cost less than this many (v, a difference and u: 2.5)."""


LARGE = 10_000_000
"""Parameters from which operations are what a step costs; below, an exact way costs little more and is taken."""


def rows_pay(losses: Sequence[Tensor]) -> bool:
    """Tell whether one backward per task, rows kept, is the cheapest way for these losses.

    Args:
        losses: The T+1 losses with their graphs, 0-dim each.
    """
    return len(losses) <= 2 or (len(losses) <= ROWS_KEPT and shared_backwards(losses) < BACKWARDS)


def choose(
    problem: OuterProblem, direction: Direction, *, differences: bool = True
) -> tuple[str, str, OneSidedDifference | None, Tensor]:
    """Choose an estimator for this model at its first outer step.

    With up to `ROWS_KEPT` losses, one backward per task gives v, g and the next inner gradient at once. That is the
    cheapest way with two losses, and with three that have most of their forward passes to themselves (then the T+1
    backwards together cost little more than one). Otherwise, for large models in float32, one-sided differences, which
    cost a single forward and check themselves against one backward per task; else forward mode where the model supports
    it, checked once; else central differences in float32, checked alike; else one backward per task. (Only a backward
    knows a target that was made of w under ``torch.no_grad`` for a constant.) Nothing is timed: the same run always
    chooses alike.

    Args:
        problem: The outer problem of the first outer step.
        direction: Its q.
        differences: False if one-sided differences have turned out to be wrong.

    Returns:
        Name of the estimator, the reason in a line, the estimator itself if it has found its step size already, and g
        of shape (T+1,) for this step.
    """
    setup = problem.auxiliary.setup
    if problem.keep_rows:
        exact = per_task(problem, direction)
        return "per_task", "the task gradients give the inner and the outer step at once", None, exact
    reason = ""
    if differences and _differences_pay(problem):
        one_sided = OneSidedDifference(warn=False)
        exact = one_sided(problem, direction)
        reason = f"differs from one backward per task by {one_sided.error:.1e}"
        if one_sided.step is not None and one_sided.reliable:
            one_sided.overwrite = True  # from the next step on, nobody else wants the direction
            return "one_sided", f"the cheapest way; {reason}", one_sided, exact
        reason = f"a one-sided difference {reason}; "
    else:
        exact = per_task(problem, direction)
    if not setup.sharing.whole_weights:
        return *_without_forward_mode(problem, direction, exact, f"{reason}the weights are sharded"), exact
    try:
        products = forward_mode(problem, direction)
    except (NotImplementedError, RuntimeError) as error:
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return *_without_forward_mode(problem, direction, exact, f"{reason}no forward mode: {cause}"), exact
    gap = _gap(products, exact)
    if not gap <= TOLERANCE * (5 if setup.low_precision else 1):
        reason = f"{reason}forward mode differs from one backward per task by {gap:.1e}"
        return *_without_forward_mode(problem, direction, exact, reason), exact
    return "forward", f"{reason}forward mode works (differs from one backward per task by {gap:.1e})", None, products


def _differences_pay(problem: OuterProblem) -> bool:
    """Tell whether the model is large and float32: in float64 nobody looks for speed, below differences are none."""
    setup = problem.auxiliary.setup
    exact_enough = not setup.low_precision and problem.auxiliary.values.dtype == torch.float32
    return exact_enough and sum(parameter.numel() for parameter in setup.model.parameters()) >= LARGE


def _without_forward_mode(
    problem: OuterProblem, direction: Direction, exact: Tensor, reason: str
) -> tuple[str, str, None]:
    if problem.auxiliary.setup.low_precision:
        return "per_task", reason, None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # an uncertain difference is not chosen
        gap = _gap(CentralDifference()(problem, direction), exact)
    if not gap <= DIFFERENCE_TOLERANCE:
        return "per_task", f"{reason}; so do differences, by {gap:.1e}", None
    return "difference", reason, None


def _gap(products: Tensor, exact: Tensor) -> float:
    return float((products - exact).norm() / exact.norm().clamp_min(1e-300)) if exact.norm() > 0 else 0.0
