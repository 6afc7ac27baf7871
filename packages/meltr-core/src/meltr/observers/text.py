"""Text formatting shared by the console and ``log.txt``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from meltr.progress import duration

if TYPE_CHECKING:
    from meltr.context import Data, Evaluation, RunContext, StepRecord

_LONGEST_LIST = 8


def memory(mebibytes: float) -> str:
    """Return a memory size as text, such as ``812 MiB`` or ``12.3 GiB``."""
    return f"{mebibytes:.0f} MiB" if mebibytes < 1024 else f"{mebibytes / 1024:.1f} GiB"


def number(value: float) -> str:
    """Return `value` with four significant digits, without an exponent where possible."""
    if 1e4 <= abs(value) < 1e7:
        return f"{value:.0f}"
    if not math.isfinite(value) or value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:#.4g}".rstrip(".")
    return f"{value:.2e}"


def total_steps(context: RunContext, data: Data) -> int:
    """Return the number of inner steps of a whole run."""
    steps = len(data.train) * context.spec.train.epochs
    limit = context.spec.train.max_steps
    return steps if limit is None else min(steps, limit)


def heading(context: RunContext) -> str:
    """Return one line that describes the run."""
    spec = context.spec
    return (
        f"{spec.backbone} / {spec.task} / {spec.dataset}  combiner {spec.combiner}"
        f"  losses {', '.join(spec.losses)}  seed {spec.seed}  device {context.device}"
    )


def facts(meta: Mapping[str, Any]) -> str:
    """Return the facts about a data set in one line."""
    return "  ".join(f"{key.replace('_', ' ')} {_fact(value)}" for key, value in meta.items())


def _fact(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, Mapping):
        return f"({', '.join(f'{key} {_fact(item)}' for key, item in value.items())})"
    if isinstance(value, Sequence) and not isinstance(value, str):
        rest = len(value) - _LONGEST_LIST
        shown = ", ".join(_fact(item) for item in value[:_LONGEST_LIST])
        return f"[{shown}, and {rest} more]" if rest > 0 else f"[{shown}]"
    return str(value)


def step_line(record: StepRecord, total: int) -> str:
    """Return a logged step in one line; ``a`` is the task weight."""
    losses = "  ".join(
        f"{name} {number(loss)}"
        + (f" (a {number(record.sensitivities[name])})" if name in record.sensitivities else "")
        for name, loss in record.losses.items()
    )
    return (
        f"step {record.step}/{total}  epoch {record.epoch:.2f}  {losses}  combined {number(record.combined)}"
        f"  lr {record.lr:.3g}  {record.examples_per_second:,.0f} examples/s  {memory(record.memory_mb)}"
        f"  ETA {duration(record.eta_seconds)}"
    )


def metrics_text(metrics: Mapping[str, Any]) -> str:
    """Return metrics in one line, e.g. ``top1 79.12  top5 97.10``."""
    return "  ".join(
        f"{name} {number(value) if isinstance(value, (int, float)) else value}" for name, value in metrics.items()
    )


def with_skipped(metrics: Mapping[str, Any], skipped: Mapping[str, str] | None) -> dict[str, Any]:
    """Return metrics for display: skipped ones come last, with the reason in place of a value."""
    return {**metrics, **{name: f"skipped ({reason})" for name, reason in (skipped or {}).items()}}


def evaluation_line(split: str, step: int, evaluation: Evaluation) -> str:
    """Return an evaluation in one line."""
    metrics = metrics_text(with_skipped(evaluation.metrics, evaluation.skipped))
    skipped = f", {len(evaluation.skipped_items):,} skipped" if evaluation.skipped_items else ""
    line = f"step {step}  {split}  {metrics}  ({evaluation.count:,} examples{skipped})"
    return "; ".join([line, *(f"{name}: {metrics_text(each)}" for name, each in evaluation.baselines.items())])


def results_lines(results: Mapping[str, Any]) -> list[str]:
    """Return one line per split and baseline with its metrics, then the cost and where the time went."""
    lines = []
    for split in ("validation", "test"):
        if results.get(split):
            found = results[split]
            lines.append(f"result  {split}  {metrics_text(with_skipped(found['metrics'], found.get('skipped')))}")
            for name, metrics in (found.get("baselines") or {}).items():
                lines.append(f"result  {split}, {name}  {metrics_text(metrics)}")
    return [*lines, *(f"result  {line}" for line in (cost_text(results), time_text(results)) if line)]


def cost_text(results: Mapping[str, Any]) -> str:
    """Return steps, time, speed and memory of a finished run, as far as `results` holds them."""
    parts = []
    if "steps" in results:
        parts.append(f"{results['steps']:,} steps")
    if results.get("seconds") is not None:
        parts.append(f"{duration(results['seconds'])} hours" if results["seconds"] >= 3600 else _minutes(results))
    if results.get("examples_per_second") is not None:
        parts.append(f"{results['examples_per_second']:,.0f} examples/s")
    if results.get("peak_memory_mb") is not None:
        parts.append(f"peak memory {memory(results['peak_memory_mb'])}")
    return ", ".join(parts)


_PARTS = {
    "steps": "steps",
    "batches": "waiting for batches",
    "evaluations": "evaluations",
    "checkpoints": "checkpoints",
}

_ADVICE = {
    "batches": "reading batches: try --set workers=N",
    "launches": "the host, which launches kernels: try --set train.cuda_graphs=true",
    "computation": "computation",
}


def time_text(results: Mapping[str, Any]) -> str:
    """Return where the time of a finished run went and what bounds its training, if `results` holds it; else ''."""
    spent: Mapping[str, Any] = results.get("time") or {}
    whole = sum(spent.get(part, 0) for part in _PARTS)
    if not whole:
        return ""
    shares = {part: f"{words} {spent[part] / whole:.0%}" for part, words in _PARTS.items()}
    if spent["outer_steps"]:
        shares["steps"] += f" (of which outer steps {spent['outer_steps'] / whole:.0%})"
    bound = _ADVICE.get(results.get("bound_by") or "")
    return f"time: {', '.join(shares.values())}" + (f"; bound by {bound}" if bound else "")


def _minutes(results: Mapping[str, Any]) -> str:
    seconds = float(results["seconds"])
    return f"{seconds:.1f} s" if seconds < 60 else f"{duration(seconds)} min"
