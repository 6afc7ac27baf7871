"""Comparison of an estimator with one backward pass per task, whose g is exact and takes its place if need be."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from meltr.autograd.vectors import Direction
from meltr.errors import NoForwardModeError
from meltr.hypergradients.estimators.base import Estimator
from meltr.hypergradients.estimators.per_task import PerTask
from meltr.hypergradients.problem import OuterProblem
from meltr.hypergradients.setup import ModelSetup

CHECKS = (0, 1, 9)
"""Outer steps, counted from 0, at which a named estimator is checked. Losses that read what their forward moves, such
as a queue, may be exact at the first step and not at the second."""


def first_line(error: Exception) -> str:
    """Return the first line of the error's text without its full stop, or its type."""
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


def relative_gap(products: Tensor, exact: Tensor) -> float:
    """Return the relative difference of g from the exact one, both of shape (T+1,); 0 if that is zero."""
    return float((products - exact).norm() / exact.norm().clamp_min(1e-300)) if exact.norm() > 0 else 0.0


def allowed(estimator: Estimator, setup: ModelSetup) -> float:
    """Return the relative difference that is accepted of an estimator; bf16 alone rounds at 4e-3."""
    tolerance = math.inf if estimator.tolerance is None else estimator.tolerance
    return tolerance * (5 if setup.low_precision else 1)


def _found(estimator: Estimator, problem: OuterProblem, direction: Direction) -> Tensor:
    """Return g by an estimator.

    Raises:
        NoForwardModeError: If torch has no forward mode for the losses.
    """
    try:
        return estimator(problem, direction)
    except (NotImplementedError, RuntimeError) as error:
        if estimator.name != "forward" or isinstance(error, torch.OutOfMemoryError):
            raise
        raise NoForwardModeError(
            f"estimator={estimator.name} cannot evaluate these losses: {first_line(error).partition('. ')[0]}.",
            "Use --set estimator=auto or per_task (meltr.Auto(), meltr.PerTask()).",
        ) from error


class EstimatorInUse:
    """The estimator of a training loop, and what takes its place once it was found to be wrong.

    An estimator that the user names is compared with one backward pass per task at the outer steps in `CHECKS`. Only a
    backward pass treats what the losses compute from w under ``torch.no_grad`` as a constant, and forward mode sees
    only weights that a module or the loop names. If the two differ by more than the estimator's tolerance, a warning
    says so, and g comes from one backward pass per task from then on.

    Args:
        named: The estimator that the loop was made with.

    Attributes:
        exchanges: Whether another estimator takes the place of one that is wrong.
    """

    def __init__(self, named: Estimator) -> None:
        self.named, self.exchanges, self._ahead = named, True, set(CHECKS)
        self._instead: Estimator | None = None

    @property
    def now(self) -> Estimator:
        """The estimator that computes g."""
        return self.named if self._instead is None else self._instead

    @property
    def name(self) -> str:
        """Name of the estimator that computes g; ``auto`` while that has not chosen."""
        return self.now.chosen or self.now.name

    def checks(self, taken: int) -> bool:
        """Tell whether the outer step after `taken` others checks the estimator, with a backward pass per task."""
        return taken in self._ahead and self.now.tolerance is not None and not self.now.checks_itself

    def products(self, problem: OuterProblem, direction: Direction, *, taken: int) -> Tensor:
        """Return g, shape (T+1,).

        Args:
            problem: The outer problem.
            direction: q; its contents may be overwritten.
            taken: Outer steps taken before.
        """
        moving = problem.auxiliary.setup.trained.moving
        if moving and self.exchanges and not self._needs_one_evaluation:
            self._exchange(problem, f"the losses change {moving[0].name} by themselves")
        used = self.now
        due = self.checks(taken)
        self._ahead.discard(taken)
        if not due:
            products = _found(used, problem, direction)
            if self.exchanges and not used.reliable:
                self._exchange(problem, f"{used.name} is off")
            return products
        exact = PerTask()(problem, direction)  # before the estimator overwrites the direction
        products = _found(used, problem, direction)
        gap = relative_gap(products, exact)
        if gap <= allowed(used, problem.auxiliary.setup) or not bool(exact.isfinite().all()):
            if self.exchanges and not used.reliable:
                self._exchange(problem, f"{used.name} is off")
            return products
        warnings.warn(
            f"estimator={used.name} is {gap:.1%} off: its g differs that much from one backward pass per task. "
            "Use --set estimator=auto or per_task.",
            RuntimeWarning,
            stacklevel=2,
        )
        if not self.exchanges:
            return products
        self._exchange(problem, f"{used.name} is off")
        return exact

    def measured_alone(self) -> None:
        """Warn at the first outer step only, and exchange nothing, to measure what the estimator itself finds."""
        self.exchanges, self._ahead = False, {0}

    @property
    def _needs_one_evaluation(self) -> bool:
        """True if the estimator needs no other evaluation of the losses than that of the training step."""
        return isinstance(self.now, PerTask) or self.now.needs_second_derivative

    def _exchange(self, problem: OuterProblem, why: str) -> None:
        problem.log(f"estimator: per_task from now on, since {why}")
        self._instead = PerTask()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the estimator, and whether another one has taken its place."""
        return {**self.named.state_dict(), **({} if self._instead is None else {"exchanged": True})}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state that `state_dict` returned."""
        self._instead = PerTask() if state.get("exchanged") else None
        self.named.load_state_dict({key: value for key, value in state.items() if key != "exchanged"})
