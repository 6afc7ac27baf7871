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
from meltr.verify.fixed_run import FixedRun, Found, Stepper
from meltr.verify.oracle import DIFFERENCES, EXACT, SHARED, TOLERANCES, Oracle, choose_oracle
from meltr.verify.replays import Check, Traces, check_replay
from meltr.verify.timing import Timing, interleaved
from meltr.verify.variants import ORACLE, estimators, exact_hessian, schemes

TOLERANCES_LOW = (5e-2, 1e-1)


@dataclass(frozen=True)
class Row:
    """Result of one estimator or one scheme.

    Args:
        name: Its name.
        used: The estimator that computed g; None if it could not run.
        cause: Why it could not run, or the reason for the choice of ``auto``.
        agreement: Agreement of g with the exact one; None if there is nothing to compare.
        tolerance: Largest relative error allowed; None: any.
        finite: True if g and the combiner's gradient are finite.
        repeatable: True if a second run gave the same bits.
        traces: What differs from the state after a plain step: ``weights``, ``buffers``, ``generators``.
        time: Time of a step with an outer step, relative to a plain step.
        memory: Its peak memory above the start, relative to a plain step.
        hessian: For a scheme: relative error of g with Hessian-vector products by differences against double backward
            (0 or rounding if the scheme takes none), or why there is none; None for estimators.
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
        """What is wrong with it; None if nothing is."""
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
    """All findings.

    Args:
        run: What was checked: backbone, task, data set, losses, device, precision.
        checks: Checks of the losses themselves.
        oracle: The estimator that is taken as exact.
        oracle_cause: Why it is not double backward, or what is wrong with another exact estimator; may be empty.
        exact: g by the oracle, by loss.
        float64: Error of the oracle against itself in float64, or why there is none.
        estimators: One row per estimator, including ``auto``.
        schemes: One row per scheme; their g is compared with that of the first.
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
        """What is wrong, one line per problem."""
        found = [f"{check.name}: {check.found}" for check in self.checks if check.status == "fail"]
        return [*found, *(row.problem for row in self.estimators if row.problem)]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able values."""
        return {"ok": not self.problems, "problems": self.problems, **dataclasses.asdict(self)}


def verify(
    run: FixedRun,
    *,
    tolerance: float | None = None,
    turns: int = 3,
    float64: bool = True,
    log: Callable[[str], None] = lambda line: None,
) -> Verification:
    """Check the losses and the hypergradients of one run at its first outer step.

    Args:
        run: The run.
        tolerance: Relative error allowed for every estimator; None: `TOLERANCES`.
        turns: Number of times that each step is timed.
        float64: Compare the oracle with itself in float64, if the model supports it.
        log: Called with one line of text about the next part.

    Raises:
        PluginError: If no exact estimator can run.
    """
    log("the losses, evaluated several times")
    checks, traces = check_replay(run), Traces(run)
    if not traces.steady:
        checks.append(Check("plain step twice", "warn", "not bit-identical: changes by outer steps are not compared"))
    oracle = choose_oracle(run)
    exact = oracle.found
    steppers: dict[str, Stepper] = {"plain": run.reference}
    ways = (*estimators(run.registry), "auto")
    rows = [_estimator_row(run, each, oracle, traces, tolerance, steppers, log) for each in ways]
    others = [_scheme_row(run, each, exact, steppers, log) for each in schemes(run.registry)]
    log(f"time and memory of {len(steppers)} kinds of step")
    prices = _prices(run, steppers, turns)
    plain = prices["plain"]
    return Verification(
        run=run.describe(),
        checks=checks,
        oracle=oracle.name,
        oracle_cause="; ".join(f"not {name}: {why}" for name, why in oracle.unfit.items() if name in EXACT),
        exact=dict(zip(run.spec.losses, exact.products.tolist(), strict=True)),
        estimators=[_priced(row, plain, prices.get(f"estimator {row.name}")) for row in rows],
        schemes=[_priced(row, plain, prices.get(f"scheme {row.name}")) for row in others],
        milliseconds=1000 * plain[0].median,
        mib=plain[1],
        float64=_in_float64(run, oracle, log) if float64 else "not requested",
    )


def _prices(run: FixedRun, steppers: Mapping[str, Stepper], turns: int) -> dict[str, tuple[Timing, float | None]]:
    """Return time and peak memory in MiB of one step of each kind."""
    timed = interleaved(
        {name: stepper.one_step for name, stepper in steppers.items()},
        reference="plain",
        turns=turns,
        device=run.device,
        before=lambda name: steppers[name].at_outer_step(),
    )
    return {name: (timed[name], stepper.peak(1)) for name, stepper in steppers.items()}


def _priced(row: Row, plain: tuple[Timing, float | None], price: tuple[Timing, float | None] | None) -> Row:
    """Return a row with its cost relative to a plain step."""
    if price is None:
        return row
    memory = price[1] / plain[1] if price[1] and plain[1] else None
    return dataclasses.replace(row, time=price[0].ratio, memory=memory)


def allowed_error(precision: str, *, differences: bool) -> float:
    """Return the relative error of g that an estimator may have.

    Args:
        precision: ``train.precision`` of the run.
        differences: The estimator uses finite differences.
    """
    return TOLERANCES.get(precision, TOLERANCES_LOW)[differences]


def _estimator_row(
    run: FixedRun,
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
        stepper = run.stepper({**SHARED, "bilevel.estimator": name})
        found = stepper.find()
        left = traces.differences() if traces.steady and name != ORACLE else []
        again = stepper.find()
    except Exception as error:
        return Row(name, None, cause(error))
    steppers[f"estimator {name}"] = stepper
    return Row(
        name,
        found.estimator,
        cause=" ".join(found.messages),
        agreement=agreement(found.products, oracle.found.products),
        tolerance=tolerance or allowed_error(run.spec.train.precision, differences=found.estimator in DIFFERENCES),
        finite=_finite(found),
        repeatable=torch.equal(found.products, again.products),
        traces=(*([] if found.weights_kept else ["weights"]), *left),
    )


def _scheme_row(
    run: FixedRun, name: str, exact: Found, steppers: dict[str, Stepper], log: Callable[[str], None]
) -> Row:
    log(f"scheme {name}")
    try:
        stepper = run.stepper({**SHARED, "bilevel.scheme": name})
        found = stepper.find()
    except Exception as error:
        return Row(name, None, cause(error))
    steppers[f"scheme {name}"] = stepper
    return Row(
        name,
        found.estimator,
        agreement=agreement(found.products, exact.products),
        finite=_finite(found),
        hessian=_hessian_error(run, name, found),
    )


def _hessian_error(run: FixedRun, scheme: str, found: Found) -> float | str:
    """Return the error of g with Hessian products by differences against double backward, or why there is none."""
    hessian = exact_hessian(run.registry, scheme)
    settings = {**SHARED, "bilevel.scheme": scheme, **hessian, "bilevel.estimator": found.estimator}
    try:
        exact = run.stepper(settings).find()
    except Exception as error:
        return f"no Hessian by double backward: {cause(error)}"
    return agreement(found.products, exact.products).error


def _finite(found: Found) -> bool:
    parts: list[Tensor] = [found.products, *([] if found.gradient is None else [found.gradient])]
    return found.gradient is not None and all(bool(part.isfinite().all()) for part in parts)


def _in_float64(run: FixedRun, oracle: Oracle, log: Callable[[str], None]) -> float | str:
    """Return the error of the oracle against itself in float64, or why there is none; converts the run to float64."""
    log("the oracle in float64")
    run.restore()
    run.seed(0)
    with torch.no_grad():
        single = run.losses(run.batches[0])
    try:
        run.double()
        run.seed(0)
        with torch.no_grad():
            double = run.losses(run.batches[0])
        gap = max(abs(float(double[name]) / float(single[name]) - 1) for name in single)
        if gap > 1e-3:
            return "not comparable: the losses draw different random numbers in float64"
        settings = {**SHARED, "bilevel.estimator": oracle.name, "train.precision": "fp32"}
        return agreement(oracle.found.products, run.stepper(settings).find().products).error
    except Exception as error:
        return f"cannot run: {cause(error)}"
