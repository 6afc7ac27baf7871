"""Table 8 of the paper, the cost of the schemes, from the file that ``meltr bench --json`` writes."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from meltr.errors import UserError
from meltr.recipes import UNKNOWN, RecipeInfo
from meltr.report.paper_tables import TITLES
from meltr.report.sheets import Sheet

CASE = "transformer-small"
"""The case of ``meltr bench`` that the miniature measures."""

_REFERENCE = "sum"
_COLUMNS = ("time", "memory")


def row_names(recipes: Sequence[RecipeInfo]) -> dict[str, RecipeInfo]:
    """Return the recipes by the name that ``meltr bench`` gives to their row: the scheme, or multi-task learning."""
    named = {}
    for recipe in recipes:
        sums = recipe.settings.get("combiner") == _REFERENCE
        named[_REFERENCE if sums else str(recipe.settings["bilevel.scheme"])] = recipe
    return named


def measured(content: Mapping[str, Any] | None, recipes: Sequence[RecipeInfo]) -> list[dict[str, Any]]:
    """Return one entry per recipe with what was measured relative to multi-task learning; None where it was not.

    Raises:
        UserError: If the file is not one of ``meltr bench``.
    """
    try:
        rows = {row["name"]: row for row in content["cases"][0]["rows"]} if content else {}
    except (KeyError, IndexError, TypeError) as error:
        message = f"the file for table 8 was not written by meltr bench: it has no {error}"
        raise UserError(message, "Move it away, or write another with `meltr bench --json`.") from error
    return [
        {"recipe": recipe.name, **{column: rows.get(name, {}).get(column) for column in _COLUMNS}}
        for name, recipe in row_names(recipes).items()
    ]


def to_sheet8(recipes: Sequence[RecipeInfo], content: Mapping[str, Any] | None, file: Path, *, sample: bool) -> Sheet:
    """Return the table as text.

    Args:
        recipes: Those of the table.
        content: The file's content; None: there is none.
        file: Where it lies, or should.
        sample: It is about the small transformer of core.
    """
    rows = []
    for entry, recipe in zip(measured(content, recipes), row_names(recipes).values(), strict=True):
        paper = recipe.paper
        assert paper is not None
        figures = [paper.figures.get(column) for column in _COLUMNS]
        rows.append([paper.row, "paper", *(UNKNOWN if value is None else f"{value:.2f}x" for value in figures)])
        found = [entry[column] for column in _COLUMNS]
        rows.append(["", "ours", *("missing" if value is None else f"{value:.2f}x" for value in found)])
    names = ",".join(row_names(recipes))
    recipe = row_names(recipes).get("aid-fp-lite", recipes[0])
    command = f"{recipe.command()} --variants {names}".replace("meltr run", "meltr bench")
    where = f"Measured on {content['date']} on {content['device']}: {content['command']}." if content else ""
    notes = [f"The figures of ours are of {CASE}, a small transformer of random data."] if sample else []
    notes += ["Time and memory of a training step relative to multi-task learning; unknown: not in our sources.", where]
    places = {recipe.paper.note for recipe in recipes if recipe.paper and recipe.paper.note}
    return Sheet(
        title=f"Table 8 of the paper: {TITLES[8]}" + (" (miniature)" if sample else ""),
        header=["scheme", "", *_COLUMNS],
        rows=rows,
        notes=[note for note in [*notes, *sorted(places)] if note],
        texts=2,
        commands=[] if content else [("missing", f"{command} --json {shlex.quote(str(file))}")],
    )
