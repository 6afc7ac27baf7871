"""Gathers runs of recipes into a table of the paper, beside the paper's figures."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meltr.errors import UserError
from meltr.folders.run_folder import RunFolder
from meltr.plugins import Registry
from meltr.recipes import RecipeInfo, all_recipes
from meltr.report.sheets import Sheet
from meltr.report.statistics import deviation, mean
from meltr.settings import difference, resolve
from meltr.specs import RunSpec
from meltr.sweeps.pieces import NEUTRAL

MINIATURE = (
    "The figures of ours are of the miniature: a small model, a synthetic sample, a few steps. They say that every row "
    "runs, and nothing about the paper's data."
)
_INSIDE_RUNS = {"checkpoints", "plots", "predictions", "tensorboard"}
_DEEPEST = 5
TITLES = {
    1: "text-to-video retrieval on YouCook2",
    2: "text-to-video retrieval on MSRVTT",
    3: "questions about videos",
    4: "captions of YouCook2",
    5: "captions of MSRVTT full",
    6: "sentiment on CMU-MOSI",
    7: "MELTR against multi-task learning",
    8: "cost of the schemes",
    9: "weight of the regulariser",
    10: "parts of a loss token",
    11: "losses with masked inputs",
    12: "more data and backbones",
}
"""What each table of the paper is about."""


@dataclass
class Line:
    """A row of the table.

    Args:
        recipe: Its recipe.
        runs: Seed -> folder of the finished run that counts.
        values: Metric -> one value per seed, in the order of `runs`.
        begun: Folders of runs that are not finished.
    """

    recipe: RecipeInfo
    runs: dict[int, Path] = field(default_factory=dict)
    values: dict[str, list[float]] = field(default_factory=dict)
    begun: list[Path] = field(default_factory=list)


@dataclass
class PaperTable:
    """A table of the paper with our figures.

    Args:
        number: Of the table.
        lines: Its rows.
        sample: The runs are on synthetic samples.
        notes: What a reader must know about the runs.
    """

    number: int
    lines: list[Line]
    sample: bool
    notes: list[str]

    @property
    def metrics(self) -> list[str]:
        """The columns."""
        papers = [line.recipe.paper for line in self.lines]
        return list(dict.fromkeys(name for paper in papers if paper for name in paper.figures))

    def missing(self, seeds: Sequence[int]) -> list[tuple[Line, list[int]]]:
        """Return the rows that lack runs of some of `seeds`, with these seeds."""
        lacking = [(line, [seed for seed in seeds if seed not in line.runs]) for line in self.lines]
        return [(line, left) for line, left in lacking if left]


def gather(registry: Registry, number: int, runs: Path, *, sample: bool) -> PaperTable:
    """Find the runs of a table's recipes below a folder.

    A run counts if its settings are those of its recipe. Files that the recipe leaves open (weights, features) and
    settings that do not change a result may differ.

    Args:
        registry: The plugins found.
        number: Of the table.
        runs: Where the runs lie.
        sample: Take runs on synthetic samples, and no others.

    Raises:
        UserError: If no installed backbone has a recipe for the table.
    """
    recipes = all_recipes(registry, number)
    if not recipes:
        hint = f"Its recipes come with the backbones. Installed: {', '.join(sorted(registry.backbones)) or 'none'}."
        raise UserError(f"no installed backbone has recipes for table {number}", hint)
    lines = {recipe.name: Line(recipe) for recipe in recipes}
    table = PaperTable(number, list(lines.values()), sample, [])
    asked = {recipe.name: resolve(registry, preset=recipe.name, flags={"sample": sample or None}) for recipe in recipes}
    for folder, spec in found_runs(runs, set(lines)):
        if spec.sample != sample:
            continue
        name = str(spec.preset)
        changed = deviations(spec, asked[name]) + ([] if sample else _without(spec, lines[name].recipe))
        if changed:
            table.notes.append(f"Not counted: {folder}: it differs from {name} in {', '.join(changed)}.")
        else:
            _count(lines[name], folder, spec, table.notes)
    return table


def found_runs(root: Path, recipes: set[str]) -> Iterator[tuple[Path, RunSpec]]:
    """Yield the runs of `recipes` below a folder, with their descriptions, in the order of their paths."""
    for place, folders, files in os.walk(root):
        depth = len(Path(place).relative_to(root).parts)
        folders[:] = sorted(set(folders) - _INSIDE_RUNS) if depth < _DEEPEST else []
        if "run.yaml" not in files:
            continue
        # Most folders are of other runs: the line of the recipe is looked for before YAML is read, which is slow.
        text = (Path(place) / "run.yaml").read_text(encoding="utf-8", errors="replace")
        if not any(f"preset: {name}\n" in text for name in recipes):
            continue
        spec = RunFolder(Path(place)).read_spec()
        if spec.preset in recipes:
            yield Path(place), spec


def deviations(spec: RunSpec, recipe: RunSpec) -> list[str]:
    """Return the settings in which a run differs from its recipe so that it does not count."""
    open_ones = {f"options.{name}" for name, value in recipe.options.items() if value is None}
    return [key for key in difference(spec, recipe) if key not in NEUTRAL | open_ones | {"seed"}]


def _without(spec: RunSpec, recipe: RecipeInfo) -> list[str]:
    """Return the files of a recipe that a run did without, such as the weights that it should start from."""
    given = spec.model_dump(mode="json")
    places = {key: key.partition(".") for key in recipe.files}
    return [key for key, (section, _, name) in places.items() if given[section].get(name) is None]


def _count(line: Line, folder: Path, spec: RunSpec, notes: list[str]) -> None:
    results = RunFolder(folder).read_results()
    if results is None:
        line.begun.append(folder)
        return
    metrics = _metrics(results)
    if spec.seed in line.runs:
        notes.append(f"Not counted: {folder}: seed {spec.seed} of {line.recipe.name} is {line.runs[spec.seed]}.")
        return
    line.runs[spec.seed] = folder
    for name in line.recipe.paper.figures if line.recipe.paper else ():
        if isinstance(metrics.get(name), (int, float)):
            line.values.setdefault(name, []).append(float(metrics[name]))


def _metrics(results: Mapping[str, Any]) -> Mapping[str, Any]:
    for split in ("test", "validation"):
        found = (results.get(split) or {}).get("metrics")
        if found:
            return dict(found)
    return {}


def to_sheet(table: PaperTable, seeds: Sequence[int]) -> Sheet:
    """Return the table as text: two rows per recipe, the paper's and ours."""
    metrics = table.metrics
    rows: list[list[str]] = []
    part = None
    for line in table.lines:
        paper = line.recipe.paper
        assert paper is not None
        shown = "" if paper.part == part else paper.part
        part = paper.part
        rows.append([shown, paper.row, "paper", *(_paper(paper.figures, name) for name in metrics)])
        ours = "ours" if not line.runs else f"ours, n={len(line.runs)}"
        rows.append(["", "", ours, *(_ours(line, name) if name in paper.figures else "" for name in metrics)])
    places = {line.recipe.paper.note for line in table.lines if line.recipe.paper and line.recipe.paper.note}
    legend = "ours: mean ± sample standard deviation over n seeds, on the test split; unknown: not in our sources."
    return Sheet(
        title=f"Table {table.number} of the paper: {TITLES[table.number]}" + (" (miniature)" if table.sample else ""),
        header=["data", "row", "", *metrics],
        rows=rows,
        notes=[*([MINIATURE] if table.sample else []), legend, *sorted(places), *table.notes],
        texts=3,
        commands=_commands(table, seeds),
    )


def _paper(figures: Mapping[str, float | None], name: str) -> str:
    if name not in figures:
        return ""
    value = figures[name]
    return "unknown" if value is None else f"{value:g}"


def _ours(line: Line, name: str) -> str:
    values = line.values.get(name, [])
    if not values:
        return "skipped" if line.runs else "missing"
    spread = deviation(values)
    digits = 3 if abs(mean(values)) < 2 else 1
    return f"{mean(values):.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")


def _commands(table: PaperTable, seeds: Sequence[int]) -> list[tuple[str, str]]:
    """Return the command that fills each missing cell."""
    commands = []
    for line, left in table.missing(seeds):
        name = line.recipe.name
        commands += [(f"{name}, begun", f"meltr run --resume {folder}") for folder in line.begun]
        command = f"{line.recipe.command(sample=table.sample)} --seed {','.join(map(str, left))}"
        if not line.begun:
            commands.append((f"missing: {name}", command))
    return commands
