"""g = J q by central differences of the losses, without a graph."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from meltr.autograd.vectors import Direction
from meltr.hypergradients.estimators.base import Estimator
from meltr.hypergradients.passes import Passes
from meltr.hypergradients.problem import OuterProblem

LADDER = tuple(10.0 ** (-exponent / 2) for exponent in range(2, 11))
"""Step sizes to choose from, as lengths ||e q|| in parameter space: 1e-1, 3e-2, ..., 1e-5."""


class CentralDifference(Estimator):
    """g_t = (l_t(w + e q) - l_t(w - e q)) / (2 e): works with every kernel, compiled or not.

    Cost: two forward passes without a graph. Extra memory: none; w is kept in the memory of q and restored bitwise.
    Error: O(e^2), plus the losses' rounding error over e. Forward passes run in float32 (autocast is switched off), and
    the subtraction in float64.

    No fixed step suits every model, because the best one depends on the model's curvature. So the step is chosen: the
    first call evaluates all candidates, and every `recheck` calls the neighbours of the current step are evaluated. The
    step whose value agrees best with a neighbour's is used.

    Args:
        recheck: Number of calls between two checks of the step size.

    Attributes:
        step: The length ||e q|| in use; None before the first call.
        disagreement: Relative difference between two neighbouring steps at the last check: an error estimate.
    """

    name: ClassVar[str] = "difference"
    tolerance: ClassVar[float | None] = 1e-2

    def __init__(self, *, recheck: int = 50) -> None:
        self.recheck = check_recheck(recheck)
        self.step: float | None = None
        self.disagreement = float("nan")
        self._calls = 0

    def most(self, size: int) -> Passes:
        """Return the bound of two forward passes; at a check of two per step size."""
        if self._checks_next:
            return Passes(forward=2 * len(LADDER if self.step is None else neighbours(self.step)), backward=0)
        return Passes(forward=2, backward=0)

    @property
    def _checks_next(self) -> bool:
        """True if the next call checks the step size."""
        return self.step is None or self._calls % self.recheck == 0

    def __call__(self, problem: OuterProblem, direction: Direction) -> Tensor:
        """Return g = J q, shape (T+1,), float64. Weights, buffers and generators are left bitwise unchanged.

        Raises:
            UserError: If weights are float16 or bfloat16.
        """
        problem.require_precision("estimator=difference", "estimator=per_task")
        length = problem.norm(direction)
        if not usable(length):
            return undefined(problem, length)
        check = self._checks_next
        self._calls += 1
        if not check:
            assert self.step is not None
            return self._differences(problem, direction, [self.step / length])[0]
        around = LADDER if self.step is None else neighbours(self.step)
        values = self._differences(problem, direction, [step / length for step in around])
        return self._choose(around, values)

    def state_dict(self) -> dict[str, Any]:
        """Return the step and the number of calls, for a resumed run."""
        return {"step": self.step, "calls": self._calls}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state that `state_dict` returned."""
        self.step, self._calls = state["step"], int(state["calls"])

    def _differences(self, problem: OuterProblem, direction: Direction, steps: Sequence[float]) -> Tensor:
        """Return central differences for each e of `steps`, largest first, shape (len(steps), T+1), float64."""
        signed = [e for step in steps for e in (step, -step)]
        sides = losses_along(problem, direction, signed, overwrite=True).unflatten(0, (len(steps), 2))
        distances = torch.tensor(steps, dtype=torch.float64, device=sides.device)
        differences: Tensor = (sides[:, 0] - sides[:, 1]) / (2 * distances[:, None])
        return differences

    def _choose(self, steps: Sequence[float], values: Tensor) -> Tensor:
        sizes = values[1:].norm(dim=1)
        gaps = (values[1:] - values[:-1]).norm(dim=1) / sizes.clamp_min(1e-300)
        # Two zeros agree, but they mean that these steps are too short for the losses to change at all.
        lost = (sizes == 0) & bool(values.any())
        gaps = torch.where(gaps.isfinite() & ~lost, gaps, torch.inf)
        best = int(gaps.argmin())
        # Of two steps that agree, the smaller one has the smaller truncation error.
        self.step, self.disagreement = steps[best + 1], float(gaps[best])
        if self.disagreement > 0.05:
            warnings.warn(
                f"The central difference is uncertain: the best two neighbouring step sizes disagree by "
                f"{self.disagreement:.0%}. Use ForwardMode() or PerTask() (--set estimator=per_task).",
                RuntimeWarning,
                stacklevel=3,
            )
        return values[best + 1]


def check_recheck(recheck: int) -> int:
    """Return the number of calls between two checks; ValueError if it is below 1."""
    if recheck < 1:
        raise ValueError(f"recheck must be at least 1, got {recheck}")
    return recheck


def usable(length: float) -> bool:
    """Tell whether the weights can be displaced along a direction of this length."""
    return math.isfinite(length) and length > 0


def undefined(problem: OuterProblem, length: float) -> Tensor:
    """Return g for a direction that is not `usable`: zeros for length 0, else NaN."""
    return torch.full((problem.size,), length * 0.0, dtype=torch.float64, device=problem.auxiliary.values.device)


def neighbours(step: float) -> tuple[float, ...]:
    """Return the candidate steps around `step`, largest first."""
    at = min(range(len(LADDER)), key=lambda i: abs(LADDER[i] - step))
    return LADDER[max(0, at - 2) : at + 2]


@torch.no_grad()
def losses_along(
    problem: OuterProblem, direction: Direction, distances: Sequence[float], *, overwrite: bool = False
) -> Tensor:
    """Return l(w + e q) for each e of `distances`, by float32 forward passes, shape (len(distances), T+1), float64.

    The parameters are displaced in place and restored bitwise, even if a forward pass fails.

    Args:
        problem: The outer problem.
        direction: q.
        distances: Values of e, not 0, largest first (see `vectors.displaced`).
        overwrite: The contents of `direction` may be overwritten.
    """
    rows = []
    with problem.displaced(direction, overwrite=overwrite) as move:
        for e in distances:
            move(e)
            rows.append(problem.auxiliary.run(graph=False, precise=True).values.double())
    return torch.stack(rows)
