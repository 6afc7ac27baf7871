"""Further columns of a table as further tasks: what a column holds, and its values as numbers. Imports no torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from meltr.errors import UserError
from meltr.specs import RunSpec
from meltr.texts.corpus import TextItem
from meltr.texts.opening import open_texts
from meltr.texts.options import SKIP, TextOptions

MOST_CLASSES = 100
"""Most different texts of a column that holds classes."""

MOST_CODES = 10
"""Most different whole numbers that are taken for classes."""


@dataclass(frozen=True)
class Column:
    """A further column.

    Args:
        name: Its name, and that of its loss.
        kind: What it holds.
        classes: Names of its classes in training, sorted.
        mean: Mean of its numbers in training.
        deviation: Their standard deviation; the loss is in units of it.
    """

    name: str
    kind: Literal["classes", "number"]
    classes: tuple[str, ...] = ()
    mean: float = 0.0
    deviation: float = 1.0

    @property
    def outputs(self) -> int:
        """Numbers that its head returns."""
        return len(self.classes) if self.kind == "classes" else 1

    def value(self, cell: str | None) -> float:
        """Return a cell as the index of its class, or as a number in deviations from the mean.

        Returns:
            NaN if the cell is empty, or its class does not occur in training.

        Raises:
            UserError: If it holds no number, but the column does.
        """
        if cell is None:
            return math.nan
        if self.kind == "classes":
            return float(self.classes.index(cell)) if cell in self.classes else math.nan
        number = number_in(cell)
        if number is None:
            raise UserError(f"the column {self.name!r} holds numbers, but also {cell!r}", _hint(self.name, "classes"))
        return (number - self.mean) / self.deviation

    def as_json(self) -> dict[str, Any]:
        """Return the description for `Data.meta`."""
        return {**asdict(self), "classes": list(self.classes)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Column:
        """Return what `as_json` described."""
        return cls(**{**content, "classes": tuple(content["classes"])})


def describe(name: str, cells: Sequence[str], kind: str | None) -> Column | str:
    """Return what a column holds, or why it is of no use.

    Texts are classes if there are at most `MOST_CLASSES` of them, each twice on average. Numbers are classes if they
    are whole and at most `MOST_CODES` different ones, and numbers otherwise. Texts among numbers, too many texts, and
    11 to 100 different whole numbers are ambiguous, and so are whole numbers that never repeat: `kind` has to say.

    Args:
        name: Name of the column.
        cells: Its cells in training that are not empty.
        kind: ``classes`` or ``number``, if the user says so.

    Raises:
        UserError: If the column is ambiguous, or does not hold what the user says.
    """
    counts = Counter(cells)
    if len(counts) < 2:
        return "all its cells are the same"
    numbers = [number_in(cell) for cell in cells]
    found = kind or _kind_of(name, counts, numbers)
    if found == "classes":
        return Column(name, "classes", tuple(sorted(counts)))
    known = [number for number in numbers if number is not None]
    if len(known) < len(cells):
        odd = next(cell for cell, number in zip(cells, numbers, strict=True) if number is None)
        raise UserError(f"the column {name!r} holds no numbers: {odd[:40]!r}", _hint(name, "classes"))
    mean = math.fsum(known) / len(known)
    deviation = math.sqrt(math.fsum((number - mean) ** 2 for number in known) / len(known))
    return Column(name, "number", mean=mean, deviation=deviation) if deviation > 0 else "all its numbers are the same"


def _kind_of(name: str, counts: Counter[str], numbers: Sequence[float | None]) -> str:
    total = len(numbers)
    known = [number for number in numbers if number is not None]
    if not known:
        if len(counts) <= MOST_CLASSES and 2 * len(counts) <= total:
            return "classes"
        raise UserError(
            f"the column {name!r} has {len(counts):,} different texts in {total:,} cells: too many for classes",
            _hint(name, "skip", "classes"),
        )
    if len(known) < total:
        raise UserError(f"the column {name!r} holds both numbers and texts", _hint(name, "skip", "classes"))
    if any(number != int(number) for number in known):
        return "number"
    if len(counts) <= MOST_CODES:
        return "classes"
    if len(counts) > MOST_CLASSES and len(counts) < total:
        return "number"
    what = "never repeat" if len(counts) == total else f"are {len(counts)} different ones: classes, or a number"
    raise UserError(f"the column {name!r} has whole numbers that {what}", _hint(name, "number", "classes", "skip"))


def columns_of(spec: RunSpec, options: TextOptions) -> tuple[str, ...]:
    """Return the names of the further columns that a run can learn: those of its table that `options` does not skip.

    Raises:
        UserError: If the table cannot be read, a column has the name of another loss, or a setting names a column that
            does not exist.
    """
    if spec.data_root is None and not spec.sample:
        return ()  # The run ends with what belongs there.
    columns = open_texts(spec).columns
    unknown = [name for name in options.columns if name not in columns]
    if unknown:
        hint = f"Its further columns: {', '.join(columns) or 'none'}."
        raise UserError(f"columns names {unknown[0]!r}, which the table does not have", hint)
    used = tuple(name for name in columns if options.columns.get(name) != SKIP)
    taken = [name for name in used if name in spec.losses]
    if taken:
        hint = f"Rename it, or skip it: --set 'columns={{{taken[0]}: skip}}'"
        raise UserError(f"the column {taken[0]!r} has the name of another loss", hint)
    return used


def with_columns(spec: RunSpec, options: TextOptions) -> tuple[str, ...]:
    """Return the declared losses of a task, and one for every further column of the run's table.

    A backbone names this function with ``losses_of="meltr.texts.columns:with_columns"`` (see `BackboneTask.losses_of`).

    Raises:
        UserError: See `columns_of`.
    """
    return (*spec.losses, *columns_of(spec, options))


def described(
    items: Sequence[TextItem], names: Sequence[str], options: TextOptions
) -> tuple[list[Column], dict[str, str]]:
    """Return what further columns hold, and why others are of no use.

    Args:
        items: The training texts.
        names: Names of the columns.
        options: What the user says about them.

    Raises:
        UserError: If a column is ambiguous, or does not hold what the user says.
    """
    cells = {name: [item.columns[name] for item in items if name in item.columns] for name in names}
    found = {name: describe(name, cells[name], options.columns.get(name)) for name in names}
    useful = [column for column in found.values() if isinstance(column, Column)]
    return useful, {name: why for name, why in found.items() if isinstance(why, str)}


def number_in(cell: str) -> float | None:
    """Return the finite number that a cell holds; None if it holds none."""
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _hint(name: str, *kinds: str) -> str:
    return "Say what it holds: " + ", or ".join(f"--set 'columns={{{name}: {kind}}}'" for kind in kinds)
