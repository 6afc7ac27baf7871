"""Checks that the losses are a function of the weights, the batch and the random numbers alone."""

from __future__ import annotations

import pickle
import random
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from meltr.errors import MeltrError
from meltr.verify.agreement import cause
from meltr.verify.fixed_run import FixedRun
from meltr.verify.state import Snapshot

ROUNDING = {"fp32": 1e-6}
"""Precision -> relative difference of a loss that is taken for rounding (kernels whose order of summation varies)."""

ROUNDING_LOW = 1e-2


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Args:
        name: What.
        status: ``ok``, ``warn`` (worth knowing) or ``fail`` (the hypergradient will be wrong).
        found: What was found.
    """

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str


def check_replay(problem: FixedRun) -> list[Check]:
    """Evaluate the losses of a batch more than once with the same random numbers and compare."""
    problem.restore()
    weights = Snapshot(list(problem.model.parameters()))
    first = _values(problem, graph=True)
    untouched = weights.unchanged()
    problem.restore()
    second = _values(problem, graph=False)
    untouched = untouched and weights.unchanged()
    problem.restore()
    return [
        _same("losses twice", problem, first, second),
        Check(
            "weights",
            "ok" if untouched else "fail",
            "untouched by the losses" if untouched else "compute_task_losses changes parameters of the model",
        ),
        _alone(problem, first),
    ]


def _values(problem: FixedRun, *, graph: bool, losses: tuple[str, ...] | None = None) -> dict[str, float]:
    problem.seed(0)
    context = problem.context if losses is None else problem.context.with_losses(*losses)
    with torch.set_grad_enabled(graph):
        return {name: float(loss.detach()) for name, loss in problem.losses(problem.batches[0], context).items()}


def _same(name: str, problem: FixedRun, first: dict[str, float], second: dict[str, float]) -> Check:
    limit = ROUNDING.get(problem.spec.train.precision, ROUNDING_LOW)
    gaps = {each: _gap(first[each], second[each]) for each in second}
    if all(gap == 0 for gap in gaps.values()):
        return Check(name, "ok", "bit-identical with the same random numbers")
    worst = max(gaps, key=lambda each: gaps[each])
    found = f"{worst!r}: {first[worst]:.6g}, then {second[worst]:.6g} with the same random numbers"
    if gaps[worst] <= limit:
        return Check(name, "ok", f"{found} (rounding)")
    return Check(name, "fail", f"{found}; draw from context.generator or torch's generator, and keep no state")


def _alone(problem: FixedRun, first: dict[str, float]) -> Check:
    """Compare the primary loss asked for alone, as an outer step may, with the primary loss among the others."""
    name = "primary loss alone"
    primary = problem.spec.losses[0]
    try:
        alone = _values(problem, graph=False, losses=(primary,))
    except (MeltrError, RuntimeError, LookupError, TypeError, ValueError) as error:
        return Check(name, "fail", f"cannot be computed: {cause(error)}")
    finally:
        problem.restore()
    check = _same(name, problem, first, alone)
    if check.status != "fail":
        return Check(name, "ok", "the same as among the others")
    found = f"{alone[primary]:.6g}, but {first[primary]:.6g} among the others: do draws depend on which are asked for?"
    return Check(name, "warn", found)


def _gap(one: float, other: float) -> float:
    if one == other:
        return 0.0
    return abs(one - other) / max(abs(one), abs(other))


class Traces:
    """What a step leaves behind in buffers and random number generators, beside what a plain step leaves there.

    Args:
        problem: Whose steps.
    """

    def __init__(self, problem: FixedRun) -> None:
        self._problem = problem
        problem.reference.at_outer_step()
        problem.reference.one_step()
        self._buffers, self._states = self._now()
        problem.reference.at_outer_step()
        problem.reference.one_step()
        self.steady = self.differences() == []
        """False if two plain steps already differ, so that nothing can be told."""

    def differences(self) -> list[str]:
        """Return what is now different from after a plain step: ``buffers``, ``generators``."""
        buffers, states = self._now()
        found = [] if all(map(torch.equal, buffers, self._buffers)) else ["buffers"]
        return [*found, *([] if states == self._states else ["generators"])]

    def _now(self) -> tuple[list[Tensor], list[object]]:
        return [buffer.clone() for buffer in self._problem.model.buffers()], generator_states(self._problem)


def generator_states(problem: FixedRun) -> list[object]:
    """Return the states of all generators that losses may draw from, comparable by ``==``."""
    numpy = pickle.dumps(np.random.get_state())
    states: list[object] = [random.getstate(), numpy, torch.get_rng_state().tolist()]
    if problem.device.type == "cuda":
        states.append(torch.cuda.get_rng_state(problem.device).tolist())
    if problem.context.generator is not None:
        states.append(problem.context.generator.get_state().tolist())
    return states
