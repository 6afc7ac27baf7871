"""The automatic choice of an estimator (``estimator=auto``)."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from meltr.autograd.graph import shared_backwards
from meltr.autograd.vectors import Direction
from meltr.hypergradients.estimators.base import Estimator
from meltr.hypergradients.estimators.checking import allowed, first_line, relative_gap
from meltr.hypergradients.estimators.difference import CentralDifference
from meltr.hypergradients.estimators.forward import ForwardMode
from meltr.hypergradients.estimators.one_sided import OneSidedDifference
from meltr.hypergradients.estimators.per_task import PerTask
from meltr.hypergradients.loss_values import BatchValues, LossValues
from meltr.hypergradients.passes import Passes
from meltr.hypergradients.problem import ROWS_KEPT, OuterProblem

BACKWARDS = 2.5
"""T+1 backward passes are worth it if together they cost less than this many (v, a difference and u: 2.5)."""

UNCERTAIN = 5e-2
"""Relative difference from one backward pass per task up to which central differences are chosen."""

UNRECORDED = 3
"""Calls after which the evaluations of an estimator are recorded, if they can be (`meltr.autograd.graphed`)."""

LARGE = 10_000_000
"""Number of parameters above which the operations set the cost of a step; below it, exact ways cost little more."""


class Auto(Estimator):
    """Chooses an estimator at the first outer step, and chooses again if it becomes unreliable.

    With up to `ROWS_KEPT` losses, one backward pass per task gives v, g and the next inner gradient at once. That is
    the cheapest way with two losses, and with three losses that share little of their forward passes (the T+1 backward
    passes then cost little more than one). Otherwise the choice is the first of these that works:

    1. For large models in float32: one-sided differences, which cost one forward pass and are checked against one
       backward pass per task.
    2. Forward mode, if the model supports it, checked once.
    3. Central differences, in float32 only, also checked.
    4. One backward pass per task.

    The checks are needed because only a backward pass treats a target computed from w under ``torch.no_grad`` as a
    constant. Nothing is timed, so the same run always makes the same choice. The exception are bf16 and float16 on a
    GPU, where forward mode and one backward pass per task are timed once. A resumed run has the choice in its state.

    If a later check finds one-sided differences inaccurate, the next outer step chooses again without them. Choices and
    reasons are logged with the problem's `log`.
    """

    name: ClassVar[str] = "auto"

    def __init__(self) -> None:
        self._working: Estimator | None = None
        self._differences_failed = False

    @property
    def chosen(self) -> str | None:
        """Name of the estimator in use; None before a choice is made."""
        return None if self._working is None else self._working.name

    def keeps_rows(self, losses: LossValues) -> bool:
        """Tell whether the estimator in use keeps the rows; before the choice, whether that would be cheapest."""
        if self._working is not None:
            return self._working.keeps_rows(losses)
        if not (isinstance(losses, BatchValues) and PerTask().keeps_rows(losses)):
            return False
        return rows_pay(losses.parts)

    def most(self, size: int) -> Passes:
        """Return the bound of the estimator in use; of a choice if there is none."""
        return super().most(size) if self._working is None else self._working.most(size)

    def __call__(self, problem: OuterProblem, direction: Direction) -> Tensor:
        """Return g = J q, shape (T+1,), float64."""
        if self._working is None:
            self._working, reason, products = self._choose(problem, direction)
            problem.log(f"estimator: {self._working.name} ({reason})")
            return products
        products = self._working(problem, direction)
        if isinstance(self._working, OneSidedDifference) and not self._working.reliable:
            error = f"{self._working.error:.1%}"
            problem.log(f"estimator: one_sided now has an error of {error}; the next outer step chooses another")
            self._working, self._differences_failed = None, True
        return products

    def state_dict(self) -> dict[str, Any]:
        """Return the choice, the state of the estimator in use, and whether one-sided differences have failed."""
        state = {} if self._working is None else self._working.state_dict()
        return {"chosen": self.chosen, "state": state, "differences_failed": self._differences_failed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state that `state_dict` returned."""
        self._differences_failed = bool(state["differences_failed"])
        self._working = None if state["chosen"] is None else _candidate(state["chosen"])
        if self._working is not None:
            self._working.load_state_dict(state["state"])

    def _choose(self, problem: OuterProblem, direction: Direction) -> tuple[Estimator, str, Tensor]:
        """Return an estimator for the problem, the reason as one line, and g of shape (T+1,) for this step."""
        setup = problem.auxiliary.setup
        if problem.keep_rows:
            rows = PerTask()
            return rows, "the task gradients serve the inner and the outer step", rows(problem, direction)
        reason = ""
        if not self._differences_failed and _differences_pay(problem):
            one_sided = OneSidedDifference(warn=False)
            exact = one_sided.products(problem, direction, overwrite=False)  # the other estimators need the direction
            reason = f"differs from one backward pass per task by {one_sided.error:.1e}"
            if one_sided.step is not None and one_sided.reliable:
                return one_sided, f"the cheapest way; {reason}", exact
            reason = f"a one-sided difference {reason}; "
        else:
            exact = PerTask()(problem, direction)
        if not setup.sharing.whole_weights:
            return *_without_forward_mode(problem, direction, exact, f"{reason}the weights are sharded"), exact
        forward = ForwardMode()
        try:
            products = forward(problem, direction)
        except (NotImplementedError, RuntimeError) as error:
            reason = f"{reason}no forward mode: {first_line(error)}"
            return *_without_forward_mode(problem, direction, exact, reason), exact
        gap = relative_gap(products, exact)
        if not gap <= allowed(forward, setup):
            reason = f"{reason}forward mode differs from one backward pass per task by {gap:.1e}"
            return *_without_forward_mode(problem, direction, exact, reason), exact
        reason = f"{reason}forward mode works (differs from one backward pass per task by {gap:.1e})"
        if setup.device.type == "cuda" and setup.low_precision:
            prices = {each.name: _price(each, problem, direction) for each in (forward, PerTask())}
            reason += "".join(f"; {name}: {price:.1f} ms" for name, price in prices.items())
            if prices["per_task"] < prices["forward"]:
                return PerTask(), reason, products
        return forward, reason, products


def rows_pay(losses: Sequence[Tensor]) -> bool:
    """Tell whether one backward pass per task, with kept rows, is the cheapest way for these losses.

    Args:
        losses: The T+1 losses with their graphs, 0-dim each.
    """
    return len(losses) <= 2 or (len(losses) <= ROWS_KEPT and shared_backwards(losses) < BACKWARDS)


def _candidate(name: str) -> Estimator:
    """Return a new instance of the estimator with this name, one of those that can be chosen."""
    candidates = (PerTask(), OneSidedDifference(warn=False), ForwardMode(), CentralDifference())
    return next(each for each in candidates if each.name == name)


def _differences_pay(problem: OuterProblem) -> bool:
    """Tell whether differences suit the model: it is large, and neither in float64 nor in low precision."""
    setup = problem.auxiliary.setup
    exact_enough = not setup.low_precision and problem.auxiliary.values.dtype == torch.float32
    return exact_enough and sum(parameter.numel() for parameter in setup.model.parameters()) >= LARGE


def _without_forward_mode(
    problem: OuterProblem, direction: Direction, exact: Tensor, reason: str
) -> tuple[Estimator, str]:
    """Return central differences if close enough to `exact`, else one backward pass per task; with the reason."""
    if problem.auxiliary.setup.low_precision:
        return PerTask(), reason
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # an uncertain difference is not chosen
        gap = relative_gap(CentralDifference()(problem, direction), exact)
    if not gap <= UNCERTAIN:
        return PerTask(), f"{reason}; central differences are off by {gap:.1e}"
    return CentralDifference(), reason


def _price(estimator: Estimator, problem: OuterProblem, direction: Direction) -> float:
    """Return the milliseconds that an estimator takes on a GPU, where launches may cost more than operations."""
    if problem.auxiliary.setup.recorded:
        for _ in range(UNRECORDED):  # the price of replays counts, not that of recording
            estimator(problem, direction)
    torch.cuda.synchronize()
    started = time.perf_counter()
    estimator(problem, direction)
    torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - started)
