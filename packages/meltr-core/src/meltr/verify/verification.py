"""Checks the hypergradients of a run's real losses: every estimator against an exact one, and what each costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from meltr.environment import versions
from meltr.verify.agreement import Agreement, agreement, cause
from meltr.verify.fixed_run import Found, Problem, Stepper
from meltr.verify.oracle import DIFFERENCES, EXACT, SHARED, TOLERANCES, Oracle, choose_oracle
from meltr.verify.replays import Check, Traces, check_replay
from meltr.verify.timing import Timing, interleaved
from meltr.verify.variants import ORACLE, estimators, exact_hessian, schemes

TOLERANCES_LOW = (5e-2, 1e-1)


@dataclass(frozen=True)
class Row:
    """What one estimator, or one scheme, did.

    Args:
        name: Its name.
        used: The estimator that computed g; None if it could not run.
        cause: Why it could not run, or what ``auto`` says about its choice.
        agreement: Of g with the exact one; None if there is nothing to compare.
        tolerance: The largest relative error allowed; None: any.
        finite: True if g and the gradient of the combiner are finite.
        repeatable: True if a second run gave the same bits.
        traces: What differs from a plain step afterwards: ``weights``, ``buffers``, ``generators``.
        time: Of a step with an outer step, relative to a plain step.
        memory: Its peak above the start, relative to a plain step.
        hessian: Of a scheme: relative error of g with Hessian products by differences against double backward (0 or
            rounding if the scheme takes none), or why there is none; None for estimators.
    """

    name: str
    used: str | None
    cause: str = ""
    agreement: Agreement | None = None
    tolerance: float | None = None
    finite: bool = True
    repeatable: bool | None = None
    traces: tuple[str, ...] = ()
    time: float | None = None
    memory: float | None = None
    hessian: float | str | None = None

    @property
    def problem(self) -> str | None:
        """What is wrong with it, or None."""
        if self.used is None:
            return None
        if not self.finite:
            return f"{self.name}: g or the combiner's gradient is not finite"
        if self.traces:
            return f"{self.name}: the outer step leaves {' and '.join(self.traces)} changed"
        if self.tolerance is None or self.agreement is None or self.agreement.error <= self.tolerance:
            return None
        return f"{self.name}: g is off by {self.agreement.error:.1e} (allowed: {self.tolerance:.0e})"


@dataclass(frozen=True)
class Verification:
    """Everything that was found.

    Args:
        run: What was checked: backbone, task, data set, losses, device, precision.
        checks: Of the losses themselves.
        oracle: The estimator taken for exact.
        oracle_cause: Why it is not double backward, or what else is wrong with an exact estimator; or empty.
        exact: g by the oracle, by loss.
        float64: Error of the oracle against itself in float64, or why there is none.
        estimators: One row an estimator, and ``auto``.
        schemes: One row a scheme; their g is compared with that of the first.
        milliseconds: Median time of a plain step.
        mib: Peak memory of a plain step above the start.
    """

    run: dict[str, Any]
    checks: Sequence[Check]
    oracle: str
    oracle_cause: str
    exact: dict[str, float]
    float64: float | str
    estimators: Sequence[Row]
    schemes: Sequence[Row]
    milliseconds: float
    mib: float | None
    versions: dict[str, str] = field(default_factory=versions)

    @property
    def problems(self) -> list[str]:
        """What is wrong, a line each."""
        found = [f"{check.name}: {check.found}" for check in self.checks if check.status == "fail"]
        return [*found, *(row.problem for row in self.estimators if row.problem)]

    def as_dict(self) -> dict[str, Any]:
        """Return all of it for JSON."""
        return {"ok": not self.problems, "problems": self.problems, **dataclasses.asdict(self)}


def verify(
    problem: Problem,
    *,
    tolerance: float | None = None,
    turns: int = 3,
    float64: bool = True,
    log: Callable[[str], None] = lambda line: None,
) -> Verification:
    """Check the losses and the hypergradients of one run at its first outer step.

    Args:
        problem: The run.
        tolerance: Relative error allowed to every estimator; None: `TOLERANCES`.
        turns: How often each step is timed.
        float64: Compare the oracle with itself in float64, where the model can do that.
        log: Called with what is done next.

    Raises:
        PluginError: If neither exact estimator can run.
    """
    log("the losses, evaluated more than once")
    checks, traces = check_replay(problem), Traces(problem)
    if not traces.steady:
        checks.append(Check("plain step twice", "warn", "not bit-identical: what outer steps leave is not compared"))
    oracle = choose_oracle(problem)
    exact = oracle.found
    steppers: dict[str, Stepper] = {"plain": problem.reference}
    ways = (*estimators(problem.registry), "auto")
    rows = [_estimator_row(problem, each, oracle, traces, tolerance, steppers, log) for each in ways]
    others = [_scheme_row(problem, each, exact, steppers, log) for each in schemes(problem.registry)]
    log(f"time and memory of {len(steppers)} kinds of step")
    prices = _prices(problem, steppers, turns)
    plain = prices["plain"]
    return Verification(
        run=problem.describe(),
        checks=checks,
        oracle=oracle.name,
        oracle_cause="; ".join(f"not {name}: {why}" for name, why in oracle.unfit.items() if name in EXACT),
        exact=dict(zip(problem.spec.losses, exact.products.tolist(), strict=True)),
        estimators=[_priced(row, plain, prices.get(f"estimator {row.name}")) for row in rows],
        schemes=[_priced(row, plain, prices.get(f"scheme {row.name}")) for row in others],
        milliseconds=1000 * plain[0].median,
        mib=plain[1],
        float64=_in_float64(problem, oracle, log) if float64 else "not asked for",
    )


def _prices(problem: Problem, steppers: Mapping[str, Stepper], turns: int) -> dict[str, tuple[Timing, float | None]]:
    """Return time and peak memory in MiB of one step of every kind."""
    timed = interleaved(
        {name: stepper.one_step for name, stepper in steppers.items()},
        reference="plain",
        turns=turns,
        device=problem.device,
        before=lambda name: steppers[name].at_outer_step(),
    )
    return {name: (timed[name], stepper.peak(1)) for name, stepper in steppers.items()}


def _priced(row: Row, plain: tuple[Timing, float | None], price: tuple[Timing, float | None] | None) -> Row:
    """Return a row with its price relative to a plain step."""
    if price is None:
        return row
    memory = price[1] / plain[1] if price[1] and plain[1] else None
    return dataclasses.replace(row, time=price[0].ratio, memory=memory)


def _estimator_row(
    problem: Problem,
    name: str,
    oracle: Oracle,
    traces: Traces,
    tolerance: float | None,
    steppers: dict[str, Stepper],
    log: Callable[[str], None],
) -> Row:
    log(f"g by {name}")
    if name in oracle.unfit and name in EXACT:
        return Row(name, None, oracle.unfit[name])
    try:
        stepper = problem.stepper({**SHARED, "bilevel.estimator": name})
        found = stepper.find()
        left = traces.differences() if traces.steady and name != ORACLE else []
        again = stepper.find()
    except Exception as error:
        return Row(name, None, cause(error))
    steppers[f"estimator {name}"] = stepper
    low = TOLERANCES.get(problem.spec.train.precision, TOLERANCES_LOW)
    return Row(
        name,
        found.estimator,
        cause=" ".join(found.messages),
        agreement=agreement(found.products, oracle.found.products),
        tolerance=tolerance or low[found.estimator in DIFFERENCES],
        finite=_finite(found),
        repeatable=torch.equal(found.products, again.products),
        traces=(*([] if found.weights_kept else ["weights"]), *left),
    )


def _scheme_row(
    problem: Problem, name: str, exact: Found, steppers: dict[str, Stepper], log: Callable[[str], None]
) -> Row:
    log(f"scheme {name}")
    try:
        stepper = problem.stepper({**SHARED, "bilevel.scheme": name})
        found = stepper.find()
    except Exception as error:
        return Row(name, None, cause(error))
    steppers[f"scheme {name}"] = stepper
    return Row(
        name,
        found.estimator,
        agreement=agreement(found.products, exact.products),
        finite=_finite(found),
        hessian=_hessian_error(problem, name, found),
    )


def _hessian_error(problem: Problem, scheme: str, found: Found) -> float | str:
    """Return the error of g with Hessian products by differences against double backward, or why there is none."""
    hessian = exact_hessian(problem.registry, scheme)
    settings = {**SHARED, "bilevel.scheme": scheme, **hessian, "bilevel.estimator": found.estimator}
    try:
        exact = problem.stepper(settings).find()
    except Exception as error:
        return f"no Hessian by double backward: {cause(error)}"
    return agreement(found.products, exact.products).error


def _finite(found: Found) -> bool:
    parts: list[Tensor] = [found.products, *([] if found.gradient is None else [found.gradient])]
    return found.gradient is not None and all(bool(part.isfinite().all()) for part in parts)


def _in_float64(problem: Problem, oracle: Oracle, log: Callable[[str], None]) -> float | str:
    """Return the error of the oracle against itself in float64, or why there is none. The problem is spent."""
    log("the oracle in float64")
    problem.restore()
    problem.seed(0)
    with torch.no_grad():
        single = problem.losses(problem.batches[0])
    try:
        problem.double()
        problem.seed(0)
        with torch.no_grad():
            double = problem.losses(problem.batches[0])
        gap = max(abs(float(double[name]) / float(single[name]) - 1) for name in single)
        if gap > 1e-3:
            return "not comparable: the losses draw other random numbers in float64"
        settings = {**SHARED, "bilevel.estimator": oracle.name, "train.precision": "fp32"}
        return agreement(oracle.found.products, problem.stepper(settings).find().products).error
    except Exception as error:
        return f"cannot run: {cause(error)}"
