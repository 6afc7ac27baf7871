"""A figure with its numbers: the picture in every format, and the numbers as CSV beside it."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from meltr.files import write_text
from meltr.report import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Drawn = tuple["Figure", str]
"""A figure and its numbers as CSV."""


def to_csv(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table as CSV; floats have eight digits.

    Args:
        header: Names of the columns.
        rows: The cells.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([[f"{cell:.8g}" if isinstance(cell, float) else cell for cell in row] for row in rows])
    return text.getvalue()


def write(drawn: Drawn, folder: Path, *, name: str, formats: Sequence[str]) -> list[Path]:
    """Write a figure as ``folder/name.<format>`` and its numbers as ``folder/name.csv``; return the paths."""
    figure, table = drawn
    files = style.save(figure, folder, name=name, formats=formats)
    write_text(folder / f"{name}.csv", table)
    return [*files, folder / f"{name}.csv"]
