"""Table 8 of the paper: the cost of a training step with each scheme, relative to multi-task learning."""

from __future__ import annotations

import dataclasses
import datetime
import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from meltr.environment import environment
from meltr.verify.agreement import Agreement, agreement, cause
from meltr.verify.fixed_run import FixedRun, Found, Stepper
from meltr.verify.operations import Operations
from meltr.verify.oracle import choose_oracle
from meltr.verify.timing import Timing, interleaved
from meltr.verify.variants import ORACLE, REFERENCE, Variant, exact_hessian


@dataclass(frozen=True)
class Price:
    """Cost of one variant and accuracy of its hypergradient.

    Args:
        name: Name of the variant.
        summary: Its description.
        settings: The settings that differ from the run's.
        cause: Why it cannot run here; the other fields are then None.
        estimator: The estimator that computed g; None without an outer step.
        milliseconds: Median time of a training step, over whole cycles.
        time: The same relative to multi-task learning: median of the ratios of all turns.
        time_quartiles: First and third quartile of those ratios.
        mib: Peak memory of a cycle above weights and optimiser state.
        memory: The same relative to multi-task learning.
        flops: Operations of a training step relative to multi-task learning.
        operations: Work of a cycle of K steps.
        gradient: Agreement of the combiner's gradient with that of the same scheme by the oracle; if that is double
            backward, Hessian-vector products included.
        direction: Agreement of g with the exact g of the default scheme.
    """

    name: str
    summary: str
    settings: Mapping[str, Any]
    cause: str = ""
    estimator: str | None = None
    milliseconds: float | None = None
    time: float | None = None
    time_quartiles: tuple[float, float] | None = None
    mib: float | None = None
    memory: float | None = None
    flops: float | None = None
    operations: Operations | None = None
    gradient: Agreement | None = None
    direction: Agreement | None = None


@dataclass(frozen=True)
class Table8:
    """The costs of all variants on one case.

    Args:
        title: Title of the case.
        run: What was measured: backbone, losses, sizes, device.
        every: K.
        turns: Number of times that each variant was timed.
        held_mib: Memory of weights, buffers and the optimiser's state.
        oracle: The estimator that is taken as exact.
        rows: One entry per variant, multi-task learning first.
    """

    title: str
    run: Mapping[str, Any]
    every: int
    turns: int
    held_mib: float
    oracle: str
    rows: Sequence[Price]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able values."""
        return dataclasses.asdict(self)


def measure(
    run: FixedRun,
    variants: Mapping[str, Variant],
    *,
    title: str,
    turns: int,
    log: Callable[[str], None] = lambda line: None,
) -> Table8:
    """Measure all variants of one run.

    Every variant takes cycles of K training steps that include one outer step, as in a run, always from the same
    weights and with the same batches and random numbers. Variants are interleaved, so that noise of the machine affects
    all alike.

    Args:
        run: The run.
        variants: The variants to compare, including the reference.
        title: Title of the case.
        turns: Number of times that each one is timed.
        log: Called with one line of text about the next part.
    """
    steppers: dict[str, Stepper] = {REFERENCE: run.reference}
    rows = {name: Price(name, each.summary, each.settings) for name, each in variants.items()}
    exact = _Exact(run)
    for name, variant in variants.items():
        log(name)
        try:
            if name != REFERENCE:
                rows[name], steppers[name] = _examined(run, variant, rows[name], exact)
            rows[name] = dataclasses.replace(rows[name], operations=steppers[name].count())
        except Exception as error:
            rows[name] = dataclasses.replace(rows[name], cause=cause(error))
            steppers.pop(name, None)
    log(f"time of {len(steppers)} variants")
    timed = interleaved(
        {name: stepper.cycle for name, stepper in steppers.items()},
        reference=REFERENCE,
        turns=turns,
        device=run.device,
        warm_up=0,  # all variants have already taken cycles
        before=lambda name: steppers[name].at_outer_step(),
        units={name: stepper.every for name, stepper in steppers.items()},
    )
    log(f"memory of {len(steppers)} variants")
    for name, stepper in steppers.items():  # last, because the profiler changes the C library's allocator
        rows[name] = dataclasses.replace(rows[name], mib=stepper.peak(stepper.every))
    base = rows[REFERENCE]
    priced = [
        _priced(row, base, timed[name], steppers[name].every, run.reference.every) if name in timed else row
        for name, row in rows.items()
    ]
    return Table8(title, run.describe(), run.reference.every, turns, run.held_mib(), exact.name, priced)


def _examined(run: FixedRun, variant: Variant, row: Price, exact: _Exact) -> tuple[Price, Stepper]:
    """Return the row of a variant with the accuracy of its hypergradient, and its stepper."""
    stepper = run.stepper(variant.settings)
    found = stepper.find()
    row = dataclasses.replace(row, estimator=None if found.estimator == "auto" else found.estimator)
    if variant.comparable:
        row = dataclasses.replace(
            row,
            gradient=_agreement(found.gradient, exact.of(variant.settings)),
            direction=_compared(found.products, exact.of({})),
        )
    return row, stepper


def _agreement(gradient: Tensor | None, exact: Found | None) -> Agreement | None:
    if gradient is None or exact is None or exact.gradient is None:
        return None
    return agreement(gradient, exact.gradient)


def _compared(products: Tensor, exact: Found | None) -> Agreement | None:
    return None if exact is None else agreement(products, exact.products)


class _Exact:
    """Hypergradients by the oracle in float32, each computed once."""

    def __init__(self, run: FixedRun) -> None:
        self._run = run
        self._oracle = choose_oracle(run)
        self._known: dict[str, Found | None] = {}

    @property
    def name(self) -> str:
        """The estimator that is taken as exact."""
        return self._oracle.name

    def of(self, settings: Mapping[str, Any]) -> Found | None:
        """Return the exact result of a variant's scheme; None if it cannot run."""
        exact = {**settings, "train.precision": "fp32", "bilevel.estimator": self.name}
        if self.name == ORACLE:
            scheme = settings.get("bilevel.scheme", self._run.spec.bilevel.scheme)
            exact |= exact_hessian(self._run.registry, scheme)
        key = str(sorted(exact.items()))
        if key not in self._known:
            try:
                self._known[key] = self._run.stepper(exact).find()
            except Exception:
                self._known[key] = None
        return self._known[key]


def _priced(row: Price, base: Price, timing: Timing, every: int, base_every: int) -> Price:
    """Return a row with its time, and with all values relative to multi-task learning."""
    flops = None
    if row.operations is not None and base.operations is not None and row.operations.flops and base.operations.flops:
        flops = (row.operations.flops / every) / (base.operations.flops / base_every)
    return dataclasses.replace(
        row,
        milliseconds=1000 * timing.median,
        time=timing.ratio,
        time_quartiles=timing.quartiles,
        memory=row.mib / base.mib if row.mib and base.mib else None,
        flops=flops,
    )


def circumstances(device: str) -> dict[str, Any]:
    """Return where and when the measurement was made: versions, device, threads, command, date."""
    found = environment()
    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    return {
        "versions": found["versions"],
        "python": found["python"],
        "platform": found["platform"],
        "device": gpu or f"{_processor()} ({platform.machine()})",
        "threads": found["threads"],
        "command": shlex.join(["meltr", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or "CPU"
