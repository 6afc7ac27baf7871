"""Figures of what is measured at a checkpoint: losses of single examples (Figure 6), cosines, shares of the update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from meltr.errors import UserError
from meltr.folders.run_folder import RunFolder
from meltr.report import measure, numbers, statistics, style
from meltr.report.measure import ExampleLosses, Floats, Gradients, Place
from meltr.report.numbers import Drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDE = 30.0
"""Ratio of the largest to the smallest loss from which the axis is logarithmic."""


def examples_figure(found: ExampleLosses) -> Drawn:
    """Draw the range of each task's loss over single examples, on one axis (Figure 6).

    Returns:
        The figure, and its numbers as CSV: loss, examples evaluated together, number, value.
    """
    count = len(found.losses)
    figure, (axis,) = style.panels(1)
    style.resize(figure, 6.4, 1.3 + 0.55 * count)
    values = np.concatenate(list(found.losses.values()))
    logarithmic = bool(values.min() > 0 and values.max() > _WIDE * values.min())
    if logarithmic:
        axis.set_xscale("log")
    jitter = np.random.default_rng(0)
    rows: list[tuple[object, ...]] = []
    for index, (name, own) in enumerate(found.losses.items()):
        color = style.look(index)["color"]
        low, early, middle, late, high = np.percentile(own, (0, 10, 50, 90, 100))
        axis.plot([low, high], [index, index], color=color, linewidth=1.2)
        axis.plot([early, late], [index, index], color=color, linewidth=7, alpha=0.45, solid_capstyle="butt")
        axis.plot(middle, index, color=color, marker="|", markersize=16, markeredgewidth=2.5)
        axis.scatter(own, index + 0.3 + 0.08 * jitter.standard_normal(len(own)), s=5, color=color, alpha=0.5)
        rows += [(name, found.together[name], place, float(value)) for place, value in enumerate(own)]
    axis.set_yticks(range(count), [_with_size(name, found.together[name]) for name in found.losses])
    axis.set_ylim(count - 0.4, -0.5)
    axis.grid(visible=False, axis="y")
    axis.set(title="Range of each task's loss per example", xlabel="loss" + (", logarithmic" if logarithmic else ""))
    style.caption(figure, found.name, found.checkpoint, "median, 80 % (thick), all (thin)")
    return figure, numbers.to_csv(("loss", "examples_together", "number", "value"), rows)


def _with_size(name: str, size: int) -> str:
    return name if size == 1 else f"{name}\n({size} examples)"


def cosines_figure(found: Gradients) -> Drawn:
    """Draw the cosines between task gradients, on other examples and on the same ones, with 95 % intervals.

    Returns:
        The figure, and its numbers as CSV: examples, row, column, cosine, half the width of the interval, n.
    """
    count = len(found.names)
    figure, axes = style.panels(2, height=1.6 + 0.62 * count)
    rows: list[tuple[object, ...]] = []
    titles = (("other", "On other examples", found.other), ("same", "On the same examples", found.same))
    for axis, (kind, title, cosines) in zip(axes, titles, strict=True):
        if kind == "other":
            cosines = (cosines + cosines.transpose(0, 2, 1)) / 2
        mean, width = _mean_and_width(cosines)
        image = axis.imshow(mean, vmin=-1, vmax=1, cmap="RdBu", aspect="auto")
        for i in range(count):
            for j in range(count):
                rows.append((kind, found.names[i], found.names[j], mean[i, j], width[i, j], len(cosines)))
                if kind == "same" and i == j:
                    continue
                text = f"{mean[i, j]:+.2f}" + (f"\n±{width[i, j]:.2f}" if np.isfinite(width[i, j]) else "")
                ink = "white" if abs(mean[i, j]) > 0.65 else "black"
                axis.text(j, i, text, ha="center", va="center", fontsize="small", color=ink)
        axis.set_xticks(range(count), found.names, rotation=30, ha="right")
        axis.set_yticks(range(count), found.names)
        axis.grid(visible=False)
        axis.set_title(title)
    figure.colorbar(image, ax=list(axes), label="cosine", shrink=0.8)
    style.caption(figure, found.name, found.checkpoint, f"{len(found.same)} batches of {found.batch_size}, mean ± 95 %")
    return figure, numbers.to_csv(("examples", "row", "column", "cosine", "half_width", "n"), rows)


def shares_figure(found: Gradients) -> Drawn:
    """Draw which share of the update each task makes, beside its task weight, with 95 % intervals.

    Returns:
        The figure, and its numbers as CSV: loss, what, mean, half the width of the interval, n.
    """
    figure, (left, right) = style.panels(2, height=1.0 + 0.42 * len(found.names))
    rows: list[tuple[object, ...]] = []
    shown = ((left, "share", 100 * found.shares), (right, "weight", found.weights))
    for axis, what, values in shown:
        mean, width = _mean_and_width(values)
        _rows(axis, found.names, mean, width, bars=what == "share")
        rows += [(name, what, mean[i], width[i], len(values)) for i, name in enumerate(found.names)]
    right.set_yticklabels([])
    left.set(title="Share of the update", xlabel="% of the inner gradient")
    right.set(title="Task weight", xlabel="task weight $a_t$")
    style.caption(figure, found.name, found.checkpoint, f"{len(found.same)} batches of {found.batch_size}, mean ± 95 %")
    return figure, numbers.to_csv(("loss", "what", "mean", "half_width", "n"), rows)


def _rows(axis: Axes, names: Sequence[str], mean: Floats, width: Floats, *, bars: bool) -> None:
    """Draw one row per task: bars from zero, or marks on an axis that shows small differences."""
    for index, (value, half) in enumerate(zip(mean, np.nan_to_num(width), strict=True)):
        color = style.look(index)["color"]
        if bars:
            axis.barh(index, value, color=color, height=0.55, alpha=0.85)
        else:
            axis.plot(value, index, color=color, marker="o", markersize=8)
        axis.errorbar(value, index, xerr=half, color=style.NEUTRAL if bars else color, capsize=3, linewidth=1.2)
        where = (max(value + half, 0) if bars else value + half, index)
        text = f"{value:.1f}" if bars else f"{value:.6g}"
        axis.annotate(text, where, xytext=(7, 0), textcoords="offset points", va="center", fontsize="small")
    if bars:
        axis.axvline(0, color=style.NEUTRAL, linewidth=0.8)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.margins(x=0.2)
    axis.grid(visible=False, axis="y")


def _mean_and_width(values: Floats) -> tuple[Floats, Floats]:
    """Return the mean over the first dimension, and half the width of its 95 % interval (NaN if it is unknown)."""
    flat = values.reshape(len(values), -1)
    width = [statistics.half_width(column.tolist()) if np.isfinite(column).all() else None for column in flat.T]
    halves = np.array([np.nan if each is None else each for each in width]).reshape(values.shape[1:])
    return values.mean(0), halves


_OF_GRADIENTS: dict[str, Callable[[Gradients], Drawn]] = {"cosines": cosines_figure, "shares": shares_figure}

FIGURES = {"6": "example_losses", "cosines": "gradient_cosines", "shares": "update_shares"}
"""Name of the figure -> name of its files."""


def draw_measured(
    place: Place, chosen: Sequence[str], *, output: Path | None, formats: Sequence[str]
) -> dict[str, list[Path]]:
    """Measure a checkpoint and draw it; return name -> files, a CSV with the numbers among them.

    Args:
        place: Where to measure.
        chosen: Keys of `FIGURES`.
        output: Folder for the files; None: ``plots/`` in the run's folder.
        formats: File formats, from `meltr.report.style.FORMATS`.

    Raises:
        UserError: See `meltr.report.measure`.
    """
    style.check_formats(formats)
    style.require_matplotlib()
    unknown = [name for name in chosen if name not in FIGURES]
    if unknown:
        raise UserError(f"There is no figure {unknown[0]!r}.", f"Valid choices: {', '.join(FIGURES)}.")
    folder = RunFolder(place.run).plots if output is None else output
    files: dict[str, list[Path]] = {}
    gradients = None
    for name in chosen:
        if name != "6" and gradients is None:
            gradients = measure.measure_gradients(place)
        with style.plotting():
            if name == "6":
                drawn = examples_figure(measure.measure_examples(place))
            else:
                assert gradients is not None
                drawn = _OF_GRADIENTS[name](gradients)
            files[FIGURES[name]] = numbers.write(drawn, folder, name=FIGURES[name], formats=formats)
    return files
