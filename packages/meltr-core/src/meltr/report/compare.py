"""Comparison of runs: mean and spread over seeds, and paired tests of the difference to the first run."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meltr.errors import UserError, did_you_mean
from meltr.report import statistics
from meltr.report.differences import NOT_COMPARED, Difference, differences
from meltr.report.runs import Group, Run, load_group


@dataclass(frozen=True)
class Row:
    """One configuration in a comparison.

    Args:
        label: Name of the run, or of the parent folder of the seeds.
        combiner: Name of its combiner.
        losses: Its losses, primary first.
        values: Seed -> value of the metric.
        mean: Mean over the seeds.
        std: Sample standard deviation; None for one seed.
        seconds: Mean training time; None if not recorded.
        relative_seconds: `seconds` divided by that of the first row.
        difference: Mean difference to the first row over `pairs` common seeds. Without common seeds, the difference of
            the means. None in the first row.
        pairs: Number of common seeds.
        p_t: p value of the paired t-test; None for fewer than two pairs.
        p_signed_rank: Exact p value of Wilcoxon's signed-rank test; None for fewer than two pairs.
    """

    label: str
    combiner: str
    losses: tuple[str, ...]
    values: dict[int, float]
    mean: float
    std: float | None
    seconds: float | None
    relative_seconds: float | None = None
    difference: float | None = None
    pairs: int = 0
    p_t: float | None = None
    p_signed_rank: float | None = None


@dataclass(frozen=True)
class Comparison:
    """A table over configurations.

    Args:
        metric: The metric that is compared.
        split: The split it was evaluated on.
        higher_is_better: Direction; None if the runs do not state it for this metric.
        dataset: The data set.
        rows: The configurations; the first is the reference.
        notes: Remarks that a reader needs to judge the table.
        settings: Settings that differ between the rows.
    """

    metric: str
    split: str
    higher_is_better: bool | None
    dataset: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    settings: tuple[Difference, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON-able values."""
        return dataclasses.asdict(self)


def compare(paths: Sequence[Path], *, metric: str | None = None, split: str | None = None) -> Comparison:
    """Compare the runs in `paths`: each is the folder of a run, or the parent folder of several seeds.

    Runs of the same configuration with different seeds become one row.

    Args:
        paths: The folders; the first is the reference.
        metric: The metric to compare; None: the primary metric of the runs.
        split: ``test`` or ``validation``; None: test if every run has it, else validation, and a note says so.

    Raises:
        UserError: If a folder is not a run, the runs cannot be compared, or the metric or the split is missing.
    """
    notes: list[str] = []
    groups = finished_groups(paths, notes)
    runs = [run for group in groups for run in group.runs]
    _check_comparable(runs, metric)
    chosen_split = _choose_split(runs, split, notes)
    chosen_metric = _choose_metric(runs, metric, chosen_split)
    _note_counts(runs, chosen_split, notes)
    rows = _rows(groups, chosen_metric, chosen_split)
    rows = [rows[0], *(_against(rows[0], row) for row in rows[1:])]
    if any(row.pairs == 0 for row in rows[1:]):
        notes.append("rows that share no seed with the first row show the untested difference of the means")
    results = runs[0].results or {}
    direction = results.get("higher_is_better") if chosen_metric == results.get("metric") else None
    return Comparison(
        metric=chosen_metric,
        split=chosen_split,
        higher_is_better=direction,
        dataset=str(runs[0].fact("dataset")),
        rows=tuple(rows),
        notes=tuple(notes),
        settings=differences([group.runs[0].spec for group in groups]),
    )


def finished_groups(paths: Sequence[Path], notes: list[str]) -> list[Group]:
    """Load the finished runs and join those that differ only in the seed; a repeated seed starts a new group.

    Args:
        paths: Folders of runs, or of several seeds.
        notes: Remarks are added here, such as the runs that are skipped because they have no results.

    Raises:
        UserError: If a folder is not a run, or none of its runs has finished.
    """
    groups: list[Group] = []
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            notes.append(f"{path} was given twice and is shown once")
            continue
        seen.add(path.resolve())
        group = load_group(path)
        for run in group.runs:
            if run.results is None:
                notes.append(f"{run.path} has no results.json (killed or still running) and is skipped")
        finished = Group(path, tuple(run for run in group.runs if run.results is not None))
        if not finished.runs:
            raise UserError(
                f"{path} has no results yet: no results.json, so the run was killed or is still running",
                f"Finish it with `meltr run --resume {group.runs[0].path}`, or look at it with `meltr plot {path}`",
            )
        _join(groups, finished)
    return groups


def _join(groups: list[Group], new: Group) -> None:
    """Add `new` to the group of the same configuration if their seeds differ, else to the end of `groups`."""
    for index, group in enumerate(groups):
        same = _configuration(group.runs[0]) == _configuration(new.runs[0])
        if same and not {run.seed for run in group.runs} & {run.seed for run in new.runs}:
            groups[index] = Group(group.path, tuple(sorted(group.runs + new.runs, key=lambda run: run.seed or 0)))
            return
    groups.append(new)


def _configuration(run: Run) -> str:
    """Return a key that is equal for runs that differ only in the seed."""
    spec = run.spec or {name: run.fact(name) for name in ("backbone", "task", "dataset", "combiner", "losses")}
    return json.dumps({key: spec[key] for key in spec if key not in NOT_COMPARED}, sort_keys=True, default=str)


def _check_comparable(runs: Sequence[Run], metric: str | None) -> None:
    facts = ["task", "dataset", "sample"] if metric else ["task", "dataset", "sample", "metric"]
    for name in facts:
        found: dict[str, list[str]] = {}
        for run in runs:
            found.setdefault(str(run.fact(name)), []).append(run.name)
        if len(found) > 1:
            what = "use of the synthetic sample" if name == "sample" else name
            listing = "; ".join(f"{value}: {', '.join(names)}" for value, names in found.items())
            hint = "Choose one metric for all with --metric NAME." if name == "metric" else "Compare them separately."
            raise UserError(f"The runs differ in their {what}, so their numbers cannot be compared: {listing}", hint)


def _choose_split(runs: Sequence[Run], split: str | None, notes: list[str]) -> str:
    if split not in (None, "test", "validation"):
        raise UserError(f"Unknown split {split!r}", did_you_mean(str(split), ("test", "validation")))
    untested = [run.name for run in runs if not (run.results or {}).get("test")]
    if split == "test" and untested:
        raise UserError(f"No test results in: {', '.join(untested)}", "Compare them with --split validation.")
    if split is None and untested:
        notes.append("validation results, which also chose the checkpoints: no test results in " + ", ".join(untested))
    return split or ("validation" if untested else "test")


def _choose_metric(runs: Sequence[Run], metric: str | None, split: str) -> str:
    """Return the metric to compare; UserError if a run does not have it."""
    common = set.intersection(*({name for name, value in _metrics(run, split).items() if value is not None}
                                for run in runs))  # fmt: skip
    chosen = metric or str((runs[0].results or {})["metric"])
    if chosen not in common:
        lacking = [run.name for run in runs if _metrics(run, split).get(chosen) is None]
        raise UserError(
            f"Metric {chosen!r} is missing in the {split} results of: {', '.join(lacking)}",
            did_you_mean(chosen, common),
        )
    return chosen


def _metrics(run: Run, split: str) -> dict[str, Any]:
    return dict(((run.results or {}).get(split) or {}).get("metrics") or {})


def _note_counts(runs: Sequence[Run], split: str, notes: list[str]) -> None:
    counts = {((run.results or {}).get(split) or {}).get("count") for run in runs}
    if len(counts) > 1:
        sizes = ", ".join(str(count) for count in sorted(counts, key=str))
        notes.append(f"the runs were evaluated on different numbers of examples ({sizes})")


def _rows(groups: Sequence[Group], metric: str, split: str) -> list[Row]:
    labels = [_label(group) for group in groups]
    rows = []
    for group, label in zip(groups, labels, strict=True):
        run = group.runs[0]
        values = {
            index if run.seed is None else run.seed: float(_metrics(run, split)[metric])
            for index, run in enumerate(group.runs)
        }
        seconds = [float(run.results["seconds"]) for run in group.runs if run.results and run.results.get("seconds")]
        rows.append(
            Row(
                label=label if labels.count(label) == 1 else str(group.path),
                combiner=str(run.fact("combiner")),
                losses=run.losses,
                values=values,
                mean=statistics.mean(list(values.values())),
                std=statistics.deviation(list(values.values())),
                seconds=statistics.mean(seconds) if seconds else None,
            )
        )
    return rows


def _label(group: Group) -> str:
    """Return the folder's name, without the trailing seed if several folders were joined."""
    run = group.runs[0]
    if len(group.runs) == 1:
        return run.name
    if run.path.resolve() != group.path.resolve():
        return group.name
    return re.sub(rf"[-_.]?(seed|s)?[-_.]?{run.seed}$", "", group.name) or group.name


def _against(first: Row, row: Row) -> Row:
    """Return `row` with its difference to `first`."""
    ratio = row.seconds / first.seconds if row.seconds and first.seconds else None
    shared = [seed for seed in row.values if seed in first.values]
    if not shared:
        return dataclasses.replace(row, relative_seconds=ratio, difference=row.mean - first.mean)
    differences = [row.values[seed] - first.values[seed] for seed in shared]
    return dataclasses.replace(
        row,
        relative_seconds=ratio,
        difference=statistics.mean(differences),
        pairs=len(shared),
        p_t=statistics.paired_t(differences),
        p_signed_rank=statistics.signed_rank(differences) if len(shared) > 1 else None,
    )
