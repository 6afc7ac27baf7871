"""g = J q by one-sided differences of the losses: one forward pass without a graph."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from meltr.autograd.vectors import Direction
from meltr.hypergradients.estimators.base import Estimator
from meltr.hypergradients.estimators.difference import (
    LADDER,
    check_recheck,
    losses_along,
    neighbours,
    undefined,
    usable,
)
from meltr.hypergradients.estimators.per_task import PerTask
from meltr.hypergradients.passes import Passes
from meltr.hypergradients.problem import OuterProblem

TOLERANCE = 1e-2
"""Relative error of g at a check, against one backward pass per task, above which the difference is unreliable."""

EARLY = 10
"""Number of the call with an extra check, besides the regular ones: models change fastest at the start."""


class OneSidedDifference(Estimator):
    """g_t = (l_t(w + e q) - l_t(w)) / e: the cheapest way, since l(w) is already known.

    Cost: one forward pass without a graph; two under autocast or TF32, since both losses must come from float32 forward
    passes. Extra memory: none; w is kept in the memory of q. Error: O(e), plus the losses' rounding error over e.

    The error is checked: at the first call, the tenth and every `recheck`-th one, g comes from one backward pass per
    task, which is exact, and the candidate step that agrees best with it is used until the next check. The check also
    finds targets that are computed from w and detached: a backward pass treats them as constants, differences do not.

    Args:
        recheck: Number of calls between two checks. A check costs T + 1 backward and four forward passes (the first one
            nine).
        warn: Warn when a check finds too large an error; False if the caller reads `reliable`.

    Attributes:
        step: The length ||e q|| in use; None before the first call.
        error: Relative error of g at the last check.
    """

    name: ClassVar[str] = "one_sided"
    tolerance: ClassVar[float | None] = TOLERANCE

    def __init__(self, *, recheck: int = 100, warn: bool = True) -> None:
        self.recheck, self.warn = check_recheck(recheck), warn
        self.step: float | None = None
        self.error = float("nan")
        self._calls = 0

    @property
    def reliable(self) -> bool:
        """False if the error at the last check was above `TOLERANCE`."""
        return self.step is None or self.error <= TOLERANCE

    def most(self, size: int) -> Passes:
        """Return the bound of two forward passes; at a check of one per step size, and one backward pass per task."""
        if self.checks_itself:
            return Passes(forward=1 + len(LADDER if self.step is None else neighbours(self.step)), backward=size)
        return Passes(forward=2, backward=0)

    @property
    def checks_itself(self) -> bool:
        """True if the next call checks the step size against one backward pass per task."""
        return self.step is None or self._calls == EARLY or self._calls % self.recheck == 0

    def __call__(self, problem: OuterProblem, direction: Direction) -> Tensor:
        """Return g = J q, shape (T+1,), float64. Weights, buffers and generators are left bitwise unchanged.

        Raises:
            UserError: If weights are float16 or bfloat16.
        """
        return self.products(problem, direction, overwrite=True)

    def products(self, problem: OuterProblem, direction: Direction, *, overwrite: bool) -> Tensor:
        """Return g, as a call does.

        Args:
            problem: The outer problem.
            direction: q.
            overwrite: The contents of `direction` may be overwritten; False: work on a copy.

        Raises:
            UserError: If weights are float16 or bfloat16.
        """
        problem.require_precision("estimator=one_sided", "estimator=per_task")
        length = problem.norm(direction)
        if not usable(length):
            return undefined(problem, length)
        check = self.checks_itself
        self._calls += 1
        if check:
            return self._check(problem, direction, length, overwrite=overwrite)
        assert self.step is not None
        return self._differences(problem, direction, [self.step / length], overwrite=overwrite)[0]

    def state_dict(self) -> dict[str, Any]:
        """Return the step, its error and the number of calls, for a resumed run."""
        return {"step": self.step, "error": self.error, "calls": self._calls}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state that `state_dict` returned."""
        self.step, self.error, self._calls = state["step"], float(state["error"]), int(state["calls"])

    def _check(self, problem: OuterProblem, direction: Direction, length: float, *, overwrite: bool) -> Tensor:
        exact = PerTask()(problem, direction)
        if not bool(exact.isfinite().all()):
            return exact  # no step can be chosen, so the next call checks again
        around = LADDER if self.step is None else neighbours(self.step)
        values = self._differences(problem, direction, [step / length for step in around], overwrite=overwrite)
        gaps = (values - exact).norm(dim=1) / exact.norm() if bool(exact.any()) else exact.new_zeros(len(around))
        gaps = torch.where(gaps.isfinite(), gaps, torch.inf)
        best = int(gaps.argmin())
        self.step, self.error = around[best], float(gaps[best])
        if self.warn and not self.reliable:
            warnings.warn(
                f"The one-sided difference is {self.error:.1%} off. Use --set estimator=auto, forward or per_task.",
                RuntimeWarning,
                stacklevel=4,
            )
        return exact

    def _differences(
        self, problem: OuterProblem, direction: Direction, distances: list[float], *, overwrite: bool
    ) -> Tensor:
        """Return one-sided differences for each e of `distances`, largest first, shape (len(distances), T+1)."""
        here = _losses_here(problem)
        ahead = losses_along(problem, direction, distances, overwrite=overwrite)
        return torch.stack([(there - here) / e for there, e in zip(ahead, distances, strict=True)])


def _losses_here(problem: OuterProblem) -> Tensor:
    """Return l(w) in float32, shape (T+1,), as float64: the values of the training step, or of another forward pass."""
    coarse = problem.auxiliary.setup.autocast is not None or torch.get_float32_matmul_precision() != "highest"
    values = problem.auxiliary.run(graph=False, precise=True).values if coarse else problem.auxiliary.values
    return values.double()
