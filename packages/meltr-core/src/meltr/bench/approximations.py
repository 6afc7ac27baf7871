"""Quality and cost of cheaper outer steps: their g against the exact one during a short training run."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from meltr.bench.table8 import Price, Table8, measure
from meltr.errors import UserError
from meltr.verify.agreement import agreement, cause
from meltr.verify.fixed_run import FixedRun, Stepper
from meltr.verify.state import Snapshot
from meltr.verify.variants import EXACT, REFERENCE, Variant


@dataclass(frozen=True)
class Stage:
    """Agreement of g with the exact one in one part of training.

    Args:
        ratios: Median of g_t / exact g_t, by loss.
        signs: Fraction of outer steps in which g_t has the sign of the exact one, by loss.
        cosine: Median cosine of g with the exact one.
    """

    ratios: dict[str, float]
    signs: dict[str, float]
    cosine: float


@dataclass(frozen=True)
class Approximation:
    """One cheaper outer step.

    Args:
        price: Its cost relative to multi-task learning.
        early: Agreement over the first third of the outer steps; None if its g is the exact one (only taken less often)
            or it cannot run.
        late: Agreement over the last third.
        whole: Agreement over all outer steps.
        remark: A message of the engine, or why it cannot run.
    """

    price: Price
    early: Stage | None = None
    late: Stage | None = None
    whole: Stage | None = None
    remark: str = ""


@dataclass(frozen=True)
class Approximations:
    """All approximations of one case.

    Args:
        table: The case and the costs.
        steps: Training steps taken with exact outer steps.
        outer_steps: Number of outer steps compared.
        rows: One entry per variant, the exact one first.
    """

    table: Table8
    steps: int
    outer_steps: int
    rows: Sequence[Approximation]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able values."""
        content = dataclasses.asdict(self)
        del content["table"]["rows"]
        return content


def compare(
    run: FixedRun,
    variants: Mapping[str, Variant],
    *,
    title: str,
    steps: int,
    turns: int,
    log: Callable[[str], None] = lambda line: None,
) -> Approximations:
    """Train with exact outer steps; at each, compute g by every approximation on the same weights, batch and draws.

    Args:
        run: The run.
        variants: The variants to compare, including the reference and the exact one.
        title: Title of the case.
        steps: Training steps, on the run's own batches; the learning rate stays constant.
        turns: Number of times that each variant is timed.
        log: Called with one line of text about the next part.

    Raises:
        UserError: If outer steps have batches of their own, which approximations would not share.
    """
    if run.spec.bilevel.outer_batch == "replay":
        raise UserError(
            "approximations are compared on the current batch, but outer_batch is replay",
            "Remove --set outer_batch=replay.",
        )
    table = measure(run, variants, title=title, turns=turns, log=log)
    run.restore()
    log(f"{steps} training steps with exact outer steps")
    truth, found, remarks = _train(run, variants, steps)
    rows = [_row(run, row, found.get(row.name), truth, remarks.get(row.name, "")) for row in table.rows]
    return Approximations(table, steps, len(truth), rows)


def _train(
    run: FixedRun, variants: Mapping[str, Variant], steps: int
) -> tuple[list[Tensor], dict[str, list[Tensor]], dict[str, str]]:
    """Train with exact outer steps; return the exact g, each approximation's g, and remarks."""
    data = dataclasses.replace(run.built.data, validation=None, test=None)
    exact = run.stepper({**variants[EXACT].settings, "bilevel.estimator": "per_task"}, data=data)
    exact.at_outer_step()
    probes, remarks = _probes(run, variants, exact)
    truth: list[Tensor] = []
    found: dict[str, list[Tensor]] = {name: [] for name in probes}
    for _ in range(max(1, steps // exact.every)):
        for name, probe in list(probes.items()):
            try:
                seen, said = _peek(run, probe, exact)
            except Exception as error:
                remarks[name] = cause(error)
                del probes[name], found[name]
                continue
            found[name].append(seen)
            remarks[name] = remarks.get(name) or said
        truth.append(exact.observe().products)
        exact.steps(exact.every - 1)
    return truth, found, remarks


def _row(
    run: FixedRun, price: Price, found: Sequence[Tensor] | None, truth: Sequence[Tensor], remark: str
) -> Approximation:
    if not found:
        return Approximation(price, remark=remark)
    early, late, whole = _stages(run.spec.losses, found, truth)
    return Approximation(price, early, late, whole, remark)


def _probes(
    run: FixedRun, variants: Mapping[str, Variant], exact: Stepper
) -> tuple[dict[str, Stepper], dict[str, str]]:
    """Return a stepper for each approximation that changes g, all with the exact one's combiner, and the failures."""
    probes: dict[str, Stepper] = {}
    causes: dict[str, str] = {}
    for name, variant in variants.items():
        if name in (REFERENCE, EXACT) or set(variant.settings) == {"bilevel.every"}:
            continue
        try:
            probes[name] = run.stepper(variant.settings, combiner=exact.combiner, data=exact.trainer.data)
        except Exception as error:
            causes[name] = cause(error)
    return probes, causes


def _peek(run: FixedRun, probe: Stepper, exact: Stepper) -> tuple[Tensor, str]:
    """Return g by an approximation at the next outer step of the exact training; nothing is changed."""
    before = Snapshot([*run.state(), *exact.combiner.state_dict(keep_vars=True).values()])
    probe.trainer.state.step = exact.trainer.step
    probe.trainer.bilevel.count_from(exact.trainer.bilevel.steps, exact.trainer.bilevel.outer_steps)
    try:
        found = probe.observe()
    finally:
        before.restore()
    return found.products, "; ".join(line for line in found.messages if not line.startswith("estimator"))


def _stages(losses: Sequence[str], found: Sequence[Tensor], exact: Sequence[Tensor]) -> tuple[Stage, Stage, Stage]:
    """Return the agreement over the first third of the outer steps, the last third (at least one each), and all."""
    third = max(1, len(exact) // 3)
    parts = (slice(third), slice(-third, None), slice(None))
    early, late, whole = (_stage(losses, found[part], exact[part]) for part in parts)
    return early, late, whole


def _stage(losses: Sequence[str], found: Sequence[Tensor], exact: Sequence[Tensor]) -> Stage:
    ratios = torch.stack([each / true for each, true in zip(found, exact, strict=True)])
    signs = torch.stack([torch.sign(each) == torch.sign(true) for each, true in zip(found, exact, strict=True)])
    cosines = [agreement(each, true).cosine for each, true in zip(found, exact, strict=True)]
    return Stage(
        ratios={name: statistics.median(ratios[:, index].tolist()) for index, name in enumerate(losses)},
        signs=dict(zip(losses, signs.double().mean(0).tolist(), strict=True)),
        cosine=statistics.median(cosines),
    )
