"""Benchmarks as bar charts: time and memory relative to multi-task learning, and the signs of approximate g."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from meltr.report import style
from meltr.verify.variants import REFERENCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from meltr.bench.approximations import Approximation, Approximations
    from meltr.bench.table8 import Price, Table8

_BAR = 0.28  # inches per bar


def draw(results: Sequence[Table8], path: Path, *, caption: str = "") -> Path:
    """Draw time and memory of every variant, with one row of panels per case.

    Args:
        results: The cases.
        path: File to write; its suffix selects the format.
        caption: Explanation of the colours.

    Raises:
        UserError: If matplotlib is missing or the format is unknown.
    """
    from matplotlib.figure import Figure

    style.require_matplotlib()
    style.check_formats([path.suffix.removeprefix(".")])
    shown = [[row for row in result.rows if row.time is not None] for result in results]
    heights = [_BAR * len(rows) + 0.8 for rows in shown]
    with style.plotting():
        figure = Figure(figsize=(9.0, sum(heights) + 0.5), layout="constrained")
        grid = figure.subplots(len(results), 2, squeeze=False, height_ratios=heights)
        for result, rows, (time, memory) in zip(results, shown, grid, strict=True):
            _bars(time, rows, [row.time for row in rows], spans=[row.time_quartiles for row in rows])
            _bars(memory, rows, [row.memory for row in rows])
            time.set_title(f"{result.title}: time per step")
            memory.set_title("peak memory")
            memory.set_yticklabels([])
        figure.supxlabel(f"relative to multi-task learning ({REFERENCE}){caption}", fontsize="medium")
        (written,) = style.save(figure, path.parent, name=path.stem, formats=[path.suffix.removeprefix(".")])
    return written


def draw_approximations(results: Sequence[Approximations], path: Path) -> Path:
    """Draw cost of each approximation, and how often its g_t has the exact sign, with one row of panels per case.

    Args:
        results: The cases.
        path: File to write; its suffix selects the format.

    Raises:
        UserError: If matplotlib is missing or the format is unknown.
    """
    from matplotlib.figure import Figure

    style.require_matplotlib()
    style.check_formats([path.suffix.removeprefix(".")])
    shown = [[row for row in result.rows if row.price.time is not None] for result in results]
    heights = [_BAR * len(rows) + 1.1 for rows in shown]
    with style.plotting():
        figure = Figure(figsize=(9.0, sum(heights) + 0.3), layout="constrained")
        grid = figure.subplots(len(results), 2, squeeze=False, height_ratios=heights)
        for result, rows, (time, signs) in zip(results, shown, grid, strict=True):
            prices = [row.price for row in rows]
            _bars(time, prices, [row.time for row in prices], spans=[row.time_quartiles for row in prices])
            time.set_title(f"{result.table.title}: time per step")
            time.set_ylim(len(rows) - 0.5, -0.5)
            time.set_xlabel(f"relative to multi-task learning ({REFERENCE})")
            _signs(signs, rows, result.table.run["losses"])
            signs.set_title(f"signs of g in {result.outer_steps} outer steps")
        (written,) = style.save(figure, path.parent, name=path.stem, formats=[path.suffix.removeprefix(".")])
    return written


def _signs(axis: Axes, rows: Sequence[Approximation], losses: Sequence[str]) -> None:
    """Draw, for each loss, the percentage of outer steps in which an approximation has the exact sign."""
    for number, (loss, colour) in enumerate(zip(losses, style.PALETTE * len(losses), strict=False)):
        known = [(place, row.whole.signs[loss]) for place, row in enumerate(rows) if row.whole is not None]
        shift = 0.5 * ((number + 0.5) / len(losses) - 0.5)
        places, values = [place + shift for place, _ in known], [100 * value for _, value in known]
        axis.plot(values, places, "o", color=colour, markersize=4, label=loss)
    axis.axvline(95, color=style.NEUTRAL, linewidth=0.8, linestyle=":")
    axis.set_yticks(range(len(rows)), [""] * len(rows))
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlim(-3, 103)
    axis.set_xlabel("outer steps with the exact sign, % (dotted: 95)")
    axis.legend(loc="lower left", fontsize="small")


def _bars(
    axis: Axes,
    rows: Sequence[Price],
    values: Sequence[float | None],
    *,
    spans: Sequence[tuple[float, float] | None] | None = None,
) -> None:
    """Draw one bar per variant, the first at the top, with its value, and the quartiles if there are any."""
    places = range(len(rows))
    axis.barh(places, [value or 0.0 for value in values], height=0.7, color=[_colour(row) for row in rows])
    for place, value, span in zip(places, values, spans or [None] * len(rows), strict=True):
        if value is None:
            continue
        end = value
        if span is not None:
            axis.plot(span, (place, place), color=style.NEUTRAL, linewidth=1.2)
            end = max(value, span[1])
        axis.annotate(f"{value:.2f}x", (end, place), xytext=(4, 0), textcoords="offset points", va="center", size=8)
    axis.axvline(1.0, color=style.NEUTRAL, linewidth=0.8)
    axis.set_yticks(places, [row.name for row in rows])
    ends = [span[1] for span in spans or [] if span is not None]
    axis.set_xlim(0, 1.15 * max([1.0, *ends, *(value for value in values if value is not None)]))
    axis.grid(visible=False, axis="y")
    axis.invert_yaxis()


def _colour(row: Price) -> str:
    """Return the colour: of the reference, of schemes, or of estimators for one scheme."""
    if row.name == REFERENCE:
        return "#999999"
    return style.PALETTE[0] if row.settings.get("bilevel.scheme") == row.name else style.PALETTE[1]
