"""g = J q by central differences of the losses, without any graph."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from meltr.hypergradients.problem import OuterProblem
from meltr.hypergradients.vectors import Direction

LADDER = tuple(10.0 ** (-exponent / 2) for exponent in range(2, 11))
"""Step sizes that may be chosen, as lengths ||e q|| in parameter space: 1e-1, 3e-2, ..., 1e-5."""


class CentralDifference:
    """g_t = (l_t(w + e q) - l_t(w - e q)) / (2 e): works with every kernel, compiled or not.

    Cost: two forwards without a graph. Extra memory: a copy of the parameters, which puts them back bit-exactly.
    Error: O(e^2) plus the losses' rounding error over e; forwards run in float32 (autocast is switched off) and the
    subtraction in float64.

    No fixed step suits every model (its curvature sets the best one), so the step is chosen: on the first call the
    whole ladder is evaluated, later every `recheck` calls the neighbours of the current step, and the step whose value
    agrees best with its neighbours' is used.

    Args:
        recheck: Calls between two checks of the step size.

    Attributes:
        step: The length ||e q|| in use; None before the first call.
        disagreement: Relative difference of the values at two neighbouring steps at the last check: an error estimate.
    """

    def __init__(self, recheck: int = 50) -> None:
        self.recheck = recheck
        self.step: float | None = None
        self.disagreement = float("nan")
        self._calls = 0

    def __call__(self, problem: OuterProblem, direction: Direction) -> Tensor:
        """Return g = J q, shape (T+1,), float64. Weights, buffers and generators are left bit-identical.

        Raises:
            UserError: If weights are float16 or bfloat16.
        """
        problem.require_precision("estimator=difference", "estimator=per_task")
        length = problem.norm(direction)
        if length == 0.0 or length != length or length == float("inf"):
            return torch.full(
                (problem.size,), length * 0.0, dtype=torch.float64, device=problem.auxiliary.values.device
            )
        check = self.step is None or self._calls % self.recheck == 0
        self._calls += 1
        if not check:
            assert self.step is not None
            return central_difference(problem, direction, [self.step / length])[0]
        around = LADDER if self.step is None else neighbours(self.step)
        values = central_difference(problem, direction, [step / length for step in around])
        return self._choose(around, values)

    def _choose(self, steps: Sequence[float], values: Tensor) -> Tensor:
        sizes = values[1:].norm(dim=1)
        gaps = (values[1:] - values[:-1]).norm(dim=1) / sizes.clamp_min(1e-300)
        # Two zeros agree, but they mean that the losses did not feel steps so short, unless they feel none at all.
        lost = (sizes == 0) & bool(values.any())
        gaps = torch.where(gaps.isfinite() & ~lost, gaps, torch.inf)
        best = int(gaps.argmin())
        # Of the two that agree, the smaller step has the smaller truncation error.
        self.step, self.disagreement = steps[best + 1], float(gaps[best])
        if self.disagreement > 0.05:
            warnings.warn(
                f"The central difference is uncertain: the best two neighbouring step sizes disagree by "
                f"{self.disagreement:.0%}. Use estimator='forward' or 'per_task' (--set estimator=per_task).",
                RuntimeWarning,
                stacklevel=3,
            )
        return values[best + 1]


def neighbours(step: float) -> tuple[float, ...]:
    """Return the steps of the ladder around `step`, largest first."""
    at = min(range(len(LADDER)), key=lambda i: abs(LADDER[i] - step))
    return LADDER[max(0, at - 2) : at + 2]


@torch.no_grad()
def central_difference(problem: OuterProblem, direction: Direction, steps: Sequence[float]) -> Tensor:
    """Return central differences for each e of `steps`, shape (len(steps), T+1), float64.

    The parameters are perturbed in place and put back from a saved copy, also when a forward fails.
    """
    rows = []
    with problem.displaced(direction) as move:
        for step in steps:
            sides = []
            for signed in (step, -step):
                move(signed)
                sides.append(problem.auxiliary.again(full_precision=True).double())
            rows.append((sides[0] - sides[1]) / (2 * step))
    return torch.stack(rows)
