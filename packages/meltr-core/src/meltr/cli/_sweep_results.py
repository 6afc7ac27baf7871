"""What became of a sweep: runs it to its end, and one row per point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from meltr.cli._pieces import Outcome, work
from meltr.cli.output import remark, table
from meltr.errors import StoppedRun
from meltr.folders.run_folder import RunFolder
from meltr.plugins import Registry
from meltr.sweeps.pieces import Piece


def finished(registry: Registry, pieces: Sequence[Piece], *, jobs: int) -> Outcome:
    """Do what is missing; if a signal ends it, say how to go on."""
    try:
        return work(registry, pieces, jobs=jobs)
    except (KeyboardInterrupt, StoppedRun) as error:
        remark("the same command goes on where it stopped")
        if isinstance(error, StoppedRun):
            error.told = True
        raise


def summary(pieces: Sequence[Piece]) -> list[dict[str, Any]]:
    """Return one row per point: its name, metric, and the values of the seeds on validation and test."""
    rows: dict[str, dict[str, Any]] = {}
    for piece in pieces:
        row = rows.setdefault(
            piece.point.name, {"point": piece.point.name, "metric": None, "validation": [], "test": [], "seeds": 0}
        )
        row["seeds"] += 1
        results = RunFolder(piece.folder).read_results()
        if results is None:
            continue
        row["metric"] = metric = results["metric"]
        for split in ("validation", "test"):
            value = ((results.get(split) or {}).get("metrics") or {}).get(metric)
            row[split] += [] if value is None else [float(value)]
    return list(rows.values())


def best(registry: Registry, pieces: Sequence[Piece], rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the name and the validation value of the point that is best there; of equal ones the first.

    The value is the mean of the task's first metric over the seeds.

    Args:
        registry: The plugins, which state the direction of the metric.
        pieces: All runs.
        rows: What `summary` says of them.

    Returns:
        ``point`` and ``value``; None if there is one point only, if a run has no validation result, or if the points
        are of different tasks or data sets and so cannot be compared.
    """
    from meltr.report.statistics import mean

    kinds = {(piece.spec.task, piece.spec.dataset) for piece in pieces}
    if len(rows) < 2 or len(kinds) > 1 or any(len(row["validation"]) < row["seeds"] for row in rows):
        return None
    ((task, _),) = kinds
    choose = max if registry.task(task).higher_is_better else min
    chosen = choose(rows, key=lambda row: mean(row["validation"]))
    return {"point": chosen["point"], "value": mean(chosen["validation"])}


def shown(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows of `summary` as a table."""
    from meltr.report.statistics import deviation, mean

    def text(values: Sequence[float]) -> str:
        spread = deviation(values)
        return "-" if not values else f"{mean(values):.4g}" + ("" if spread is None else f" ± {spread:.2g}")

    metric = next((row["metric"] for row in rows if row["metric"]), "metric")
    head = ["point", f"validation {metric}", f"test {metric}", "seeds"]
    count = [f"{max(len(row['validation']), len(row['test']))} of {row['seeds']}" for row in rows]
    lines = [[row["point"], text(row["validation"]), text(row["test"]), n] for row, n in zip(rows, count, strict=True)]
    return table([head, *lines], indent="")
