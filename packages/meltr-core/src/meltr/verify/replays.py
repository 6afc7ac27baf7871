"""Checks that the losses depend on nothing but the weights, the batch and the random numbers."""

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
"""Relative difference of a loss that counts as rounding, by precision (for kernels that sum in varying order)."""

ROUNDING_LOW = 1e-2


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Args:
        name: What was checked.
        status: ``ok``, ``warn`` (worth knowing) or ``fail`` (the hypergradient will be wrong).
        found: The finding.
    """

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str


def check_replay(run: FixedRun) -> list[Check]:
    """Evaluate the losses of a batch several times with the same random numbers and compare them."""
    run.restore()
    weights = Snapshot(list(run.model.parameters()))
    first = _values(run, graph=True)
    untouched = weights.unchanged()
    run.restore()
    second = _values(run, graph=False)
    untouched = untouched and weights.unchanged()
    run.restore()
    return [
        _same("losses twice", run, first, second),
        Check(
            "weights",
            "ok" if untouched else "fail",
            "not changed by the losses" if untouched else "compute_task_losses changes parameters of the model",
        ),
        _alone(run, first),
    ]


def _values(run: FixedRun, *, graph: bool, losses: tuple[str, ...] | None = None) -> dict[str, float]:
    run.seed(0)
    context = run.context if losses is None else run.context.with_losses(*losses)
    with torch.set_grad_enabled(graph):
        return {name: float(loss.detach()) for name, loss in run.losses(run.batches[0], context).items()}


def _same(name: str, run: FixedRun, first: dict[str, float], second: dict[str, float]) -> Check:
    limit = ROUNDING.get(run.spec.train.precision, ROUNDING_LOW)
    gaps = {each: _gap(first[each], second[each]) for each in second}
    if all(gap == 0 for gap in gaps.values()):
        return Check(name, "ok", "bit-identical with the same random numbers")
    worst = max(gaps, key=lambda each: gaps[each])
    found = f"{worst!r}: {first[worst]:.6g}, then {second[worst]:.6g} with the same random numbers"
    if gaps[worst] <= limit:
        return Check(name, "ok", f"{found} (rounding)")
    return Check(name, "fail", f"{found}; use context.generator or torch's generator, and keep no state")


def _alone(run: FixedRun, first: dict[str, float]) -> Check:
    """Compare the primary loss computed alone, as an outer step may need it, with the one computed with the others."""
    name = "primary loss alone"
    primary = run.spec.losses[0]
    try:
        alone = _values(run, graph=False, losses=(primary,))
    except (MeltrError, RuntimeError, LookupError, TypeError, ValueError) as error:
        return Check(name, "fail", f"cannot be computed: {cause(error)}")
    finally:
        run.restore()
    check = _same(name, run, first, alone)
    if check.status != "fail":
        return Check(name, "ok", "the same as with the others")
    found = f"{alone[primary]:.6g}, but {first[primary]:.6g} with the others: do draws depend on which are requested?"
    return Check(name, "warn", found)


def _gap(one: float, other: float) -> float:
    if one == other:
        return 0.0
    return abs(one - other) / max(abs(one), abs(other))


class Traces:
    """Changes to buffers and random number generators after a step, compared with those after a plain step.

    Args:
        run: The run.
    """

    def __init__(self, run: FixedRun) -> None:
        self._run = run
        run.reference.at_outer_step()
        run.reference.one_step()
        self._buffers, self._states = self._now()
        run.reference.at_outer_step()
        run.reference.one_step()
        self.steady = self.differences() == []
        """False if two plain steps already differ, so that nothing can be compared."""

    def differences(self) -> list[str]:
        """Return what differs from the state after a plain step: ``buffers``, ``generators``."""
        buffers, states = self._now()
        found = [] if all(map(torch.equal, buffers, self._buffers)) else ["buffers"]
        return [*found, *([] if states == self._states else ["generators"])]

    def _now(self) -> tuple[list[Tensor], list[object]]:
        return [buffer.clone() for buffer in self._run.model.buffers()], generator_states(self._run)


def generator_states(run: FixedRun) -> list[object]:
    """Return the states of all generators that losses may use, comparable by ``==``."""
    numpy = pickle.dumps(np.random.get_state())
    states: list[object] = [random.getstate(), numpy, torch.get_rng_state().tolist()]
    if run.device.type == "cuda":
        states.append(torch.cuda.get_rng_state(run.device).tolist())
    if run.context.generator is not None:
        states.append(run.context.generator.get_state().tolist())
    return states
