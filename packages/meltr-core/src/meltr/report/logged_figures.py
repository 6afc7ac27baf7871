"""Figures of what a run has logged, with their numbers: task weights (Figure 4), alignment g with its uncertainty."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from meltr.errors import UserError
from meltr.folders.run_folder import RunFolder
from meltr.report import numbers, plots, series, statistics, style
from meltr.report.numbers import Drawn
from meltr.report.runs import Group, require_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTS = 10
"""Windows into which the outer steps of a run are cut, at most."""

FEWEST = 5
"""Outer steps of a window, at least."""


def alignment_figure(group: Group) -> Drawn:
    """Draw the mean alignment g_t of each task in each part of the run, with a 95 % interval over its outer steps.

    The number above a panel is the mean over the run. Its interval is that of the means of the parts, so that outer
    steps near each other, which are alike, do not count as independent.

    Returns:
        The figure, and its numbers as CSV: loss, first step, last step, n, mean, half the width of the interval.

    Raises:
        UserError: If the runs logged no outer step.
    """
    names = group.ordered(series.names(group.runs, "outer", "gradient_products"))
    if not names:
        raise UserError(
            f"{group.path} has logged no outer step, so there is no alignment to draw.",
            "Only learned combiners take outer steps: --combiner meltr.",
        )
    figure, axes = style.panels(len(names))
    rows: list[tuple[object, ...]] = []
    for index, (axis, name) in enumerate(zip(axes, names, strict=True)):
        curve = series.collect(group.runs, "outer", lambda line, name=name: line["gradient_products"].get(name))  # type: ignore[misc]
        assert curve is not None
        windows = _windows(curve)
        color = style.look(index)["color"]
        x = [(first + last) / 2 for first, last, *_ in windows]
        y, errors = [mean for *_, mean, _ in windows], [half for *_, half in windows]
        axis.errorbar(x, y, yerr=errors, color=color, marker="o", markersize=4, capsize=2, linewidth=1.2)
        axis.axhline(0, color=style.NEUTRAL, linewidth=1.0, zorder=1)
        half = statistics.half_width(y)
        axis.set_title(name)
        total = statistics.mean(y)
        shown = f"{total:+.2g}" + ("" if half is None else f" ± {half:.1g}")
        axis.set_title(shown, loc="right", fontsize="medium", fontweight="normal", color=style.FAINT)
        rows += [(name, int(first), int(last), n, mean, half) for first, last, n, mean, half in windows]
    for axis in axes:
        style.whole_numbers(axis)
    _label(figure)
    seeds = f"{len(group.runs)} seeds" if len(group.runs) > 1 else ""
    style.caption(figure, group.name, seeds, "parts of the run, mean ± 95 %; above 0: helps the primary loss")
    return figure, numbers.to_csv(("loss", "first_step", "last_step", "n", "mean", "half_width"), rows)


def _label(figure: Figure) -> None:
    figure.supxlabel("step", fontsize="medium")
    figure.supylabel("gradient alignment $g_t$", fontsize="medium")


def _windows(curve: series.Curve) -> list[tuple[float, float, int, float, float]]:
    """Return first step, last step, number, mean and half the width of the interval of every window."""
    found = []
    for places in np.array_split(np.arange(len(curve.steps)), max(1, min(PARTS, len(curve.steps) // FEWEST))):
        values = curve.values[:, places]
        known = values[np.isfinite(values)].tolist()
        if known:
            half = statistics.half_width(known)
            first, last = float(curve.steps[places[0]]), float(curve.steps[places[-1]])
            found.append((first, last, len(known), statistics.mean(known), np.nan if half is None else half))
    return found


def weights_figure(group: Group) -> Drawn:
    """Draw the mean task weight of each task in each epoch (Figure 4).

    Returns:
        The figure, and its numbers as CSV: epoch, loss, mean task weight, standard deviation over seeds.

    Raises:
        UserError: If the runs logged no task weights.
    """
    try:
        figure = plots.sensitivities_figure(group)
    except plots.NotRecordedError as reason:
        raise UserError(f"{group.path} has nothing for figure 4: {reason}.", "Draw what there is: meltr plot RUN.")
    return figure, weights_table(group)


def weights_table(group: Group) -> str:
    """Return the numbers of Figure 4 as CSV: epoch, loss, mean task weight, standard deviation over seeds."""
    rows: list[tuple[object, ...]] = []
    for name in group.ordered(series.names(group.runs, "train", "sensitivities")):
        curve = series.collect(group.runs, "train", lambda line, name=name: (line.get("sensitivities") or {}).get(name))  # type: ignore[misc]
        if curve is None:
            continue
        epochs = series.per_epoch(curve)
        deviations = [""] * len(epochs.epochs) if epochs.std is None else [*map(float, epochs.std)]
        rows += [
            (float(epoch), name, float(mean), deviation)
            for epoch, mean, deviation in zip(epochs.epochs, epochs.mean, deviations, strict=True)
        ]
    return numbers.to_csv(("epoch", "loss", "task_weight", "std"), rows)


FIGURES: dict[str, tuple[str, Callable[[Group], Drawn]]] = {
    "4": ("sensitivities", weights_figure),
    "alignment": ("alignment", alignment_figure),
}
"""Number or name of the figure -> name of its files, and how it is drawn."""


def draw_logged(
    group: Group, chosen: Sequence[str], *, output: Path | None, formats: Sequence[str]
) -> dict[str, list[Path]]:
    """Draw figures of what the runs have logged; return name -> files, a CSV with the numbers among them.

    Args:
        group: A run, or several seeds of one configuration.
        chosen: Keys of `FIGURES`.
        output: Folder for the files; None: ``plots/`` in the group's folder.
        formats: File formats, from `meltr.report.style.FORMATS`.

    Raises:
        UserError: If a run has nothing for a figure.
    """
    style.check_formats(formats)
    style.require_matplotlib()
    require_metrics(group)
    folder = RunFolder(group.path).plots if output is None else output
    files: dict[str, list[Path]] = {}
    with style.plotting():
        for key in chosen:
            name, figure_of = FIGURES[key]
            files[name] = numbers.write(figure_of(group), folder, name=name, formats=formats)
    return files
