"""g = J q by one-sided differences of the losses: a single forward without a graph."""

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
from meltr.hypergradients.problem import OuterProblem

TOLERANCE = 1e-2
"""Relative error of g at a check, against one backward per task, above which the difference is not reliable."""

EARLY = 10
"""Besides the regular ones, there is a check at this call: models change fastest at the start."""


class OneSidedDifference(Estimator):
    """g_t = (l_t(w + e q) - l_t(w)) / e: the cheapest way, since l(w) is there already.

    Cost: one forward without a graph; under autocast or TF32 two, since both losses must come from float32 forwards.
    Extra memory: none, the weights are kept where q was. Error: O(e) plus the losses' rounding error over e.

    That error is checked: at the first call, the tenth, and every `recheck`-th, g comes from one backward per task,
    which is exact, and the step of the ladder that agrees best with it is used until the next check. One backward per
    task also knows constants that are made of w (targets that are detached): differences feel w in them.

    Args:
        recheck: Calls between two checks. A check costs T + 1 backwards and four forwards (the first time nine).
        warn: Warn when a check finds too much error; False if the caller looks at `reliable`.

    Attributes:
        step: The length ||e q|| in use; None before the first call.
        error: Relative error of g at the last check.
    """

    name: ClassVar[str] = "one_sided"

    def __init__(self, *, recheck: int = 100, warn: bool = True) -> None:
        self.recheck, self.warn = check_recheck(recheck), warn
        self.step: float | None = None
        self.error = float("nan")
        self._calls = 0

    @property
    def reliable(self) -> bool:
        """False if the last check found more error than `TOLERANCE`."""
        return self.step is None or self.error <= TOLERANCE

    def __call__(self, problem: OuterProblem, direction: Direction) -> Tensor:
        """Return g = J q, shape (T+1,), float64. Weights, buffers and generators are left bit-identical.

        Raises:
            UserError: If weights are float16 or bfloat16.
        """
        return self.products(problem, direction, overwrite=True)

    def products(self, problem: OuterProblem, direction: Direction, *, overwrite: bool) -> Tensor:
        """Return g like a call.

        Args:
            problem: The outer problem.
            direction: q.
            overwrite: Leave anything in the memory of `direction`; False: copy it, so that it stays as it is.

        Raises:
            UserError: If weights are float16 or bfloat16.
        """
        problem.require_precision("estimator=one_sided", "estimator=per_task")
        length = problem.norm(direction)
        if not usable(length):
            return undefined(problem, length)
        check = self.step is None or self._calls == EARLY or self._calls % self.recheck == 0
        self._calls += 1
        if check:
            return self._check(problem, direction, length, overwrite=overwrite)
        assert self.step is not None
        return self._differences(problem, direction, [self.step / length], overwrite=overwrite)[0]

    def state_dict(self) -> dict[str, Any]:
        """Return step, error and number of calls, for a run that is resumed."""
        return {"step": self.step, "error": self.error, "calls": self._calls}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.step, self.error, self._calls = state["step"], float(state["error"]), int(state["calls"])

    def _check(self, problem: OuterProblem, direction: Direction, length: float, *, overwrite: bool) -> Tensor:
        exact = PerTask()(problem, direction)
        if not bool(exact.isfinite().all()):
            return exact  # of no use; without a step yet, the next call checks again
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
        return (ahead - here) / torch.tensor(distances, dtype=torch.float64, device=here.device)[:, None]


def _losses_here(problem: OuterProblem) -> Tensor:
    """Return l(w) from float32 kernels, shape (T+1,), float64: what the training evaluated, or another forward."""
    coarse = problem.auxiliary.setup.autocast is not None or torch.get_float32_matmul_precision() != "highest"
    values = problem.auxiliary.run(graph=False, precise=True).values if coarse else problem.auxiliary.values
    return values.double()
