"""The choice that ``estimator=auto`` makes, and why."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import Tensor

from meltr.hypergradients.problem import ROWS_KEPT, OuterProblem
from meltr.hypergradients.products.difference import CentralDifference
from meltr.hypergradients.products.forward import forward_mode
from meltr.hypergradients.products.per_task import per_task
from meltr.hypergradients.vectors import Direction

TOLERANCE = 1e-2
"""Relative difference from one backward per task above which forward mode is not trusted (bf16 rounds at 4e-3)."""

DIFFERENCE_TOLERANCE = 5e-2
"""The same for central differences, whose error reaches a few per cent in deep networks with kinks."""

BACKWARDS = 2.5
"""One backward per task pays while all of them together cost less than this many (forward mode: v, g and u cost 3)."""


def rows_pay(losses: Sequence[Tensor]) -> bool:
    """Tell whether one backward per task, rows kept, is the cheapest way for these losses.

    Args:
        losses: The T+1 losses with their graphs, 0-dim each.
    """
    return len(losses) <= 2 or (len(losses) <= ROWS_KEPT and shared_backwards(losses) < BACKWARDS)


def shared_backwards(losses: Sequence[Tensor]) -> float:
    """Return what one backward per loss costs together, in units of one backward through all of them.

    Between 1 (no two losses share a part of the graph) and the number of losses (they share all of it), by the number
    of operations.

    Args:
        losses: The losses with their graphs, 0-dim each.
    """
    reached = [_nodes(loss) for loss in losses]
    union = set().union(*reached)
    return sum(map(len, reached)) / max(1, len(union))


def _nodes(loss: Tensor) -> set[object]:
    found: set[object] = set()
    waiting = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found and node.next_functions:  # leaves cost nothing
            found.add(node)
            waiting.extend(following for following, _ in node.next_functions)
    return found


def choose(problem: OuterProblem, direction: Direction) -> tuple[str, str, Tensor]:
    """Choose an estimator for this model at its first outer step.

    With up to `ROWS_KEPT` losses, one backward per task gives v, g and the next inner gradient at once. That is the
    cheapest way with two losses, and with three that have most of their forward passes to themselves (then the T+1
    backwards together cost little more than one). Otherwise forward mode where the model supports it, checked once
    against one backward per task; where it does not, central differences in float32, checked alike, and one backward
    per task in lower precision or where both are wrong (a target that was made of w under ``torch.no_grad``: only a
    backward knows that it is a constant). Nothing is timed: the same run always chooses alike.

    Args:
        problem: The outer problem of the first outer step.
        direction: Its q.

    Returns:
        Name of the estimator, the reason in a line, and g of shape (T+1,) for this step.
    """
    setup = problem.auxiliary.setup
    if not setup.sharing.whole_weights:
        return "difference", "the weights are sharded", CentralDifference()(problem, direction)
    exact = per_task(problem, direction)
    if problem.keep_rows:
        return "per_task", "the task gradients give the inner and the outer step at once", exact
    try:
        products = forward_mode(problem, direction)
    except (NotImplementedError, RuntimeError) as error:
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return _without_forward_mode(problem, direction, exact, f"no forward mode: {cause}")
    gap = _gap(products, exact)
    if not gap <= TOLERANCE * (5 if setup.low_precision else 1):
        return _without_forward_mode(
            problem, direction, exact, f"forward mode differs from one backward per task by {gap:.1e}"
        )
    return "forward", f"forward mode works (differs from one backward per task by {gap:.1e})", products


def _without_forward_mode(
    problem: OuterProblem, direction: Direction, exact: Tensor, reason: str
) -> tuple[str, str, Tensor]:
    if problem.auxiliary.setup.low_precision:
        return "per_task", reason, exact
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # an uncertain difference is not chosen
        gap = _gap(CentralDifference()(problem, direction), exact)
    if not gap <= DIFFERENCE_TOLERANCE:
        return "per_task", f"{reason}; so do differences, by {gap:.1e}", exact
    return "difference", reason, exact


def _gap(products: Tensor, exact: Tensor) -> float:
    return float((products - exact).norm() / exact.norm().clamp_min(1e-300)) if exact.norm() > 0 else 0.0
