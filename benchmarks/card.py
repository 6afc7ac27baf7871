"""What training costs on an accelerator, and what the time is spent on: the card, the host, or waiting.

    python benchmarks/card.py --case transformer-base --batch-size 64 --precision bf16 --out card.json

Every row takes whole cycles of K steps from the same weights, as ``meltr bench`` does. Beside time and memory relative
to multi-task learning it says how long kernels ran, how many were launched, and how often the host waited, per step.
Rows that begin with "compiled" come from a second model with ``train.compile=true``; their times are relative to the
multi-task step that is not compiled. ``--budget`` begins no further row once that many seconds have passed. Each row is
printed, and written to ``--out``, before the next is begun, so that a run that is killed leaves what it has.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from meltr.bench.cases import pick, registry_with_cases, resolve_case
from meltr.bench.markdown import update
from meltr.files import write_json
from meltr.plugins import Registry
from meltr.specs import RunSpec
from meltr.verify.fixed_run import FixedRun, Stepper
from meltr.verify.timing import interleaved

BASE = "sum"
VARIANTS: dict[str, dict[str, Any]] = {
    BASE: {"combiner": "sum"},
    "none": {"bilevel.scheme": "none"},
    "exact": {},
    "forward": {"bilevel.estimator": "forward"},
    "one_sided": {"bilevel.estimator": "one_sided"},
    "cross": {"bilevel.outer_batch": "cross"},
    "primary-step": {"bilevel.scheme": "primary-step"},
    "primary-step K=7": {"bilevel.scheme": "primary-step", "bilevel.every": 7},
    "graphs sum": {"combiner": "sum", "train.cuda_graphs": True},
    "graphs none": {"bilevel.scheme": "none", "train.cuda_graphs": True},
    "graphs exact": {"train.cuda_graphs": True},
    "graphs primary-step": {"bilevel.scheme": "primary-step", "train.cuda_graphs": True},
    "released": {"bilevel.estimator": "double_backward", "bilevel.outer_batch": "replay"},
}
COMPILED = (BASE, "exact", "primary-step", "graphs sum", "graphs exact", "graphs primary-step")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize")
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernelEx", "cudaGraphLaunch")


def profile(stepper: Stepper) -> dict[str, float]:
    """Return the kernel time (ms), launches, copies and waits of one training step, as the mean over a cycle."""
    stepper.at_outer_step()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as found:
        stepper.cycle()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    total = {"kernels_ms": 0.0, "launches": 0.0, "copies": 0.0, "waits": -1.0}  # the profiler waits once itself
    for each in found.key_averages():
        if each.device_type == torch.autograd.DeviceType.CUDA:
            total["kernels_ms"] += each.self_device_time_total / 1000
            total["copies"] += each.count if "Memcpy" in each.key else 0
        total["launches"] += each.count if each.key in LAUNCHES else 0
        total["waits"] += each.count if each.key in WAITS else 0
    return {name: max(0.0, value) / stepper.every for name, value in total.items()}


def row(run: FixedRun, settings: Mapping[str, Any]) -> Stepper:
    """Return a stepper that has chosen its estimator and captured or compiled what it can."""
    stepper = run.stepper(settings)
    for _ in range(3):
        stepper.at_outer_step()
        stepper.cycle()
    return stepper


def reserved(device: torch.device) -> float:
    """Return the memory in MiB that is held on a GPU while nothing runs; 0 on other devices."""
    gc.collect()
    if device.type != "cuda":
        return 0.0
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved(device) / 2**20


def recorded(stepper: Stepper) -> float:
    """Give up the recordings of a stepper; return the memory in MiB that they kept between steps."""
    graphs, before = stepper.trainer.losses.graphs, reserved(stepper.run.device)
    if graphs is not None:
        graphs.clear()
    return before - reserved(stepper.run.device)


class Table:
    """The rows of one case, each measured and shown before the next is begun.

    A row is timed in alternation with multi-task learning, so that both meet the same neighbours.

    Args:
        keep: Called with all rows after each of them.
        until: When to begin no further row, in seconds of `time.monotonic`.
        turns: Times that a row is timed.
    """

    def __init__(self, keep: Callable[[Sequence[Mapping[str, Any]]], object], *, until: float, turns: int) -> None:
        self._keep, self._until, self._turns = keep, until, turns
        self.rows: list[dict[str, Any]] = []

    def measure(self, registry: Registry, spec: RunSpec, names: Sequence[str]) -> None:
        """Add one row per variant: what it cost, or why it did not run."""
        run, base = FixedRun(spec, registry), None
        for name in names:
            found: dict[str, Any] = {"name": f"compiled {name}" if spec.train.compile else name}
            if time.monotonic() > self._until:
                found["cause"] = "no time left"
            else:
                started = time.monotonic()
                try:
                    stepper = row(run, VARIANTS[name])
                    found |= {"estimator": stepper.estimator, "first_cycles_s": time.monotonic() - started}
                    base = base or stepper
                    found |= self._priced(run, stepper, base)
                    if stepper.trainer.losses.graphs is not None:
                        found["mib"] += recorded(stepper)
                except Exception as error:
                    found["cause"] = f"{type(error).__name__}: {error}".splitlines()[0][:120]
                stepper = None
            self._add(found)

    def _priced(self, run: FixedRun, stepper: Stepper, base: Stepper) -> dict[str, Any]:
        """Return time, memory and profile of a row; `base`: the first row of the same model."""
        steppers = {"row": stepper} if stepper is base else {BASE: base, "row": stepper}
        timed = interleaved(
            {name: each.cycle for name, each in steppers.items()},
            reference=next(iter(steppers)),
            turns=self._turns,
            device=run.device,
            before=lambda name: steppers[name].at_outer_step(),
            units={name: each.every for name, each in steppers.items()},
        )["row"]
        found = {"ms": 1000 * timed.median, "ratio": timed.ratio, "quartiles": timed.quartiles}
        graphs = stepper.trainer.losses.graphs
        found |= {"refused": graphs.refused} if graphs and graphs.refused else {}
        return found | {"mib": stepper.peak(stepper.every), **profile(stepper)}

    def _add(self, found: dict[str, Any]) -> None:
        if not self.rows:
            print("\n".join(HEAD), flush=True)
        self.rows.append(found)
        print(line(found, self.rows), flush=True)
        self._keep(self.rows)


HEAD = (
    "| | ms a step | time | memory | kernels, ms | launches | copies | waits |",
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
)


def line(each: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a row of a Markdown table, relative to the first row with a time.

    Time: median of the ratios of all turns (first to third quartile); of a compiled row, the ratio of the medians.
    """
    name = each["name"] + (f" ({each['refused']})" if each.get("refused") else "")
    if "ms" not in each:
        return f"| {name} | {each['cause']} | | | | | | |"
    base = next(row for row in rows if "ms" in row)
    memory = f"{each['mib'] / base['mib']:.2f}" if each.get("mib") and base.get("mib") else "-"
    estimator = f" ({each['estimator']})" if each.get("estimator") and "none" not in name else ""
    spent = [f"{each[part]:.1f}" if part in each else "-" for part in ("kernels_ms", "launches", "copies", "waits")]
    low, high = each["quartiles"]
    own = not name.startswith("compiled")
    time_of = f"{each['ratio']:.2f} ({low:.2f} to {high:.2f})" if own else f"{each['ms'] / base['ms']:.2f}"
    cells = [f"{name}{estimator}", f"{each['ms']:.1f}", time_of, memory, *spent]
    return f"| {' | '.join(cells)} |"


def shown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    return "\n".join([*HEAD, *(line(each, rows) for each in rows)])


def main() -> None:
    """Measure the cases that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", help="a case of meltr bench; may be repeated")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--set", action="append", default=[], metavar="SETTING=VALUE")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="rows that are not compiled")
    parser.add_argument("--compiled", default=",".join(COMPILED), help="rows that are compiled; empty: none")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--budget", type=float, default=1e9, help="seconds; rows that come later are skipped")
    parser.add_argument("--out", type=Path, help="write all numbers as JSON")
    parser.add_argument("--show", type=Path, metavar="JSON", help="measure nothing: print the tables of such a file")
    parser.add_argument("--markdown", metavar="FILE#NAME", help="with --show: insert the tables into this page")
    chosen = parser.parse_args()
    if chosen.show:
        stored = json.loads(chosen.show.read_text(encoding="utf-8"))
        text = "\n\n".join(f"**{title}**\n\n{shown(rows)}" for title, rows in stored.items())
        if chosen.markdown:
            update(chosen.markdown, f"{text}\n", what="card")
        print(text)
        return
    registry, until, found = registry_with_cases(), time.monotonic() + chosen.budget, {}
    flags = {"device": chosen.device, "train.precision": chosen.precision}
    flags |= {} if chosen.batch_size is None else {"train.batch_size": chosen.batch_size}
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    for case in pick(registry, chosen.case or ["transformer-small"]):

        def keep(rows: Sequence[Mapping[str, Any]], name: str = case.name) -> None:
            found[name] = list(rows)
            if chosen.out:
                write_json(chosen.out, found)

        print(f"\n**{case.name}**, {chosen.precision}, {card}, torch {torch.__version__}\n", flush=True)
        table = Table(keep, until=until, turns=chosen.turns)
        for compiled, names in ((False, chosen.variants), (True, chosen.compiled)):
            wanted = [name.strip() for name in names.split(",") if name.strip() in VARIANTS]
            if wanted and time.monotonic() <= until:
                spec = resolve_case(registry, case, flags={**flags, "train.compile": compiled}, sets=chosen.set)
                table.measure(registry, spec, wanted)


if __name__ == "__main__":
    main()
