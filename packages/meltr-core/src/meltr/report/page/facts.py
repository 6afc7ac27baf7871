"""Everything that a report says, gathered from run folders, as plain values for the template."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meltr.files import read_object
from meltr.folders.run_folder import RunFolder
from meltr.observers.text import time_text
from meltr.report import tables
from meltr.report.compare import Comparison, compare, finished_groups
from meltr.report.diagnosis import Verdict, read_verdicts
from meltr.report.page.answer import Answer, answer, duration
from meltr.report.page.samples import Sample, choose, read_rows
from meltr.report.runs import Group, Run

PictureOf = Callable[[Path, str], str | None]
"""Run folder and key or file of a video or image -> a picture of it as a data URI; None if there is none."""


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        header: Names of the columns.
        rows: The cells.
        texts: Number of columns of text, from the left; the others are numbers.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 1


@dataclass(frozen=True)
class Configuration:
    """One configuration: one run, or several seeds.

    Args:
        label: Its name in the tables.
        group: Its runs.
        facts: What it is, as name and value.
        commands: The commands that made it, and one that runs it again.
        verdicts: What a diagnosis says about its auxiliary losses.
    """

    label: str
    group: Group
    facts: Sequence[tuple[str, str]]
    commands: Sequence[tuple[str, str]]
    verdicts: Sequence[Verdict]


@dataclass(frozen=True)
class Facts:
    """The content of a report.

    Args:
        title: Of the page.
        answer: Question and answer.
        comparison: The comparison behind it.
        results: The table of results, with its legend.
        legend: Lines below that table.
        settings: Settings that differ; None if none do.
        configurations: The configurations.
        samples: Sample predictions.
        samples_note: What the samples are, or why there are none.
        metrics: All metrics of the split that is compared.
        command: The command that makes this page.
    """

    title: str
    answer: Answer
    comparison: Comparison
    results: Table
    legend: Sequence[str]
    settings: Table | None
    configurations: Sequence[Configuration]
    samples: Sequence[Sample]
    samples_note: str
    metrics: Table
    command: str


def gather(paths: Sequence[Path], *, metric: str | None = None, split: str | None = None) -> Facts:
    """Read the runs of a report.

    Args:
        paths: Folders of runs, or of several seeds; the first is the reference.
        metric: The metric to compare; None: the primary one.
        split: ``test`` or ``validation``; None: test if every run has it.

    Raises:
        UserError: See `meltr.report.compare.compare`; or a file in a run folder is broken.
    """
    comparison = compare(paths, metric=metric, split=split)
    groups = finished_groups(paths, [])
    labels = [row.label for row in comparison.rows]
    configurations = [_configuration(group, label) for group, label in zip(groups, labels, strict=True)]
    header, cells = tables.cells(comparison)
    keep = tables.shown_columns(cells)
    texts = sum(i < tables.TEXTS for i in keep)
    results = Table([header[i] for i in keep], [[row[i] for i in keep] for row in cells], texts=texts)
    differing = tables.settings_rows(comparison)
    samples, note = _samples(configurations)
    options = [*(["--metric", metric] if metric else []), *(["--split", split] if split else [])]
    first = groups[0].runs[0]
    return Facts(
        title=f"{comparison.dataset} / {first.fact('task')}: {', '.join(labels)}",
        answer=_with_remarks(answer(comparison), first),
        comparison=comparison,
        results=results,
        legend=tables.legend(comparison),
        settings=Table(differing[0], differing[1:], texts=len(labels) + 1) if differing else None,
        configurations=configurations,
        samples=samples,
        samples_note=note,
        metrics=_metrics(comparison, groups),
        command=shlex.join(["meltr", "report", *map(str, paths), *options]),
    )


def _with_remarks(found: Answer, run: Run) -> Answer:
    """Return the answer with what a reader must know before believing it."""
    if not run.fact("sample"):
        return found
    remark = "The runs used a small synthetic sample: these numbers say nothing about the real data set."
    return dataclasses.replace(found, sentences=(remark, *found.sentences))


def _configuration(group: Group, label: str) -> Configuration:
    run = group.runs[0]
    results = run.results or {}
    facts = [(name, str(run.fact(name))) for name in ("backbone", "task", "dataset", "combiner") if run.fact(name)]
    facts += [("losses", ", ".join(run.losses)), ("seeds", ", ".join(str(each.seed) for each in group.runs))]
    for name, value in (
        ("steps", results.get("steps")),
        ("training time", duration(results["seconds"]) if results.get("seconds") else None),
        ("time went to", time_text(results).removeprefix("time: ")),
        ("examples per second", results.get("examples_per_second")),
        ("peak memory", f"{results['peak_memory_mb']:.0f} MiB" if results.get("peak_memory_mb") else None),
        ("estimator of g", results.get("estimator")),
        ("device", results.get("device")),
        ("versions", ", ".join(f"{name} {value}" for name, value in (results.get("versions") or {}).items())),
    ):
        if value:
            facts.append((name, str(value)))
    commands: list[tuple[str, str]] = []
    for each in group.runs:
        words = (read_object(RunFolder(each.path).environment) or {}).get("command")
        if isinstance(words, list) and words:
            command = shlex.join(map(str, words))
            if command not in [known for _, known in commands]:
                commands.append((each.name if len(group.runs) > 1 else "made by", command))
    commands.append(("runs it again", shlex.join(["meltr", "run", "--config", str(RunFolder(run.path).spec)])))
    verdicts = [verdict for each in (group.path, run.path) for verdict in read_verdicts(each)]
    return Configuration(label, group, facts, commands[-4:], list(dict.fromkeys(verdicts)))


def _samples(configurations: Sequence[Configuration]) -> tuple[list[Sample], str]:
    """Return sample predictions of the first seed of each configuration, and a line about them."""
    rows_of: dict[str, list[dict[str, Any]]] = {}
    split = "test"
    lacking = []
    for each in configurations:
        rows, split = read_rows(each.group.runs[0].path)
        if rows:
            rows_of[each.label] = rows
        else:
            lacking.append(each.label)
    if not rows_of:
        hint = "A backbone with the setting save_predictions writes them: --set save_predictions=true."
        return [], f"No run folder holds predictions. {hint}"
    samples = choose(rows_of)
    note = f"From the {split} split, first seed of each run; examples on which the runs differ come first."
    return samples, note + (f" No predictions in: {', '.join(lacking)}." if lacking else "")


def _metrics(comparison: Comparison, groups: Sequence[Group]) -> Table:
    """Return the mean of every metric of the compared split, over seeds."""
    per_group: list[Mapping[str, list[float]]] = []
    for group in groups:
        found: dict[str, list[float]] = {}
        for run in group.runs:
            part = (run.results or {}).get(comparison.split) or {}
            for name, value in (part.get("metrics") or {}).items():
                if isinstance(value, (int, float)):
                    found.setdefault(name, []).append(float(value))
        per_group.append(found)
    names = list(dict.fromkeys(name for found in per_group for name in found))
    rows = [
        [row.label, *(f"{sum(found[name]) / len(found[name]):.4g}" if name in found else "" for name in names)]
        for row, found in zip(comparison.rows, per_group, strict=True)
    ]
    return Table(["run", *names], rows)
