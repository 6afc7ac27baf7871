"""Plots of a run: losses, task weights (Figure 4 of the paper), gradient alignments and metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from meltr.folders.run_folder import RunFolder
from meltr.observers.text import number
from meltr.report import series, style
from meltr.report.runs import Group, Line, require_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_METRICS = 6
_MANY_WINDOWS = 40
_FEW_WINDOWS = 12


@dataclass(frozen=True)
class Plots:
    """The plots that were drawn and those that were skipped.

    Args:
        files: Name of the plot -> the files it was written to.
        skipped: Name of the plot -> why it was skipped.
    """

    files: dict[str, list[Path]]
    skipped: dict[str, str]


class NotRecordedError(Exception):
    """The run did not record the data of a plot; the message says why."""


def draw(
    group: Group,
    output: Path | None = None,
    formats: Sequence[str] = ("png",),
    *,
    only: Sequence[str] | None = None,
) -> Plots:
    """Draw every plot for which the runs of `group` recorded the data.

    Args:
        group: A run, or several seeds of one configuration; then lines are means and bands are one standard deviation.
        output: Folder for the files; None: ``plots/`` in the group's folder.
        formats: File formats, from `meltr.report.style.FORMATS`.
        only: Names of the plots to draw, from `FIGURES`; None: all.

    Raises:
        UserError: If matplotlib is missing, a format is unknown, or nothing has been logged yet.
    """
    style.check_formats(formats)
    style.require_matplotlib()
    require_metrics(group)
    folder = RunFolder(group.path).plots if output is None else output
    plots = Plots({}, {})
    with style.plotting():
        for name, figure_of in FIGURES.items():
            if only is not None and name not in only:
                continue
            try:
                plots.files[name] = style.save(figure_of(group), folder, name=name, formats=formats)
            except NotRecordedError as reason:
                plots.skipped[name] = str(reason)
    return plots


def losses_figure(group: Group) -> Figure:
    """Draw each loss and the combined loss over steps, one panel each because their scales differ."""
    names = group.ordered(series.names(group.runs, "train", "losses"))
    if not names:
        raise NotRecordedError("no training step was logged")
    curves = [(name, style.look(index)["color"], _reader("losses", name)) for index, name in enumerate(names)]
    if len(names) > 1:
        curves.append(("combined loss", style.NEUTRAL, lambda line: line.get("combined")))
    figure, axes = style.panels(len(curves))
    window = 1
    for axis, (name, color, read) in zip(axes, curves, strict=True):
        curve = series.collect(group.runs, "train", read)
        if curve is not None:
            window = _draw_smoothed(axis, curve, color, parts=_MANY_WINDOWS)
            _limit(axis, curve, floor=False)
        axis.set_title(name)
    _label(figure, axes, x="step", y="loss")
    _caption(figure, group, _smoothing(window))
    return figure


def sensitivities_figure(group: Group) -> Figure:
    """Draw the mean task weight a_t = d m(l) / d l_t of each task in each epoch (Figure 4)."""
    names = group.ordered(series.names(group.runs, "train", "sensitivities"))
    if not names:
        raise NotRecordedError("no task weights were logged")
    figure, (axis,) = style.panels(1)
    style.resize(figure, 7.4, 4.2)
    lasts = []
    for index, name in enumerate(names):
        curve = series.collect(group.runs, "train", _reader("sensitivities", name))
        if curve is None:
            continue
        epochs = series.per_epoch(curve)
        look = style.look(index)
        few = len(epochs.epochs) <= 30
        (line,) = axis.plot(
            epochs.epochs, epochs.mean, label=name, markersize=4, **(look if few else look | {"marker": ""})
        )
        _band(axis, epochs.epochs, epochs, color=look["color"])
        lasts.append((_last(epochs.mean), line))
    low, high = axis.get_ylim()
    for mark in (0.0, 1.0):  # the plain sum has the weight 1; far from both, the axis shows small differences
        if low - (high - low) <= mark <= high + (high - low):
            axis.axhline(mark, color=style.NEUTRAL, linewidth=0.8, linestyle=":" if mark else "-", zorder=1)
    lasts.sort(key=lambda item: -item[0])
    handles = [line for _, line in lasts]
    if style.is_narrow():
        figure.legend(handles=handles, loc="outside lower center", title="task", ncols=2)
    else:
        figure.legend(handles=handles, loc="outside right center", title="task")
    axis.set_title("Task weights")
    _label(figure, [axis], x="epoch", y=r"task weight $a_t = \partial m / \partial \ell_t$")
    _caption(figure, group, "mean over each epoch" if epochs.epochs[0] >= 1 else "mean over each tenth of the run")
    return figure


def gradient_products_figure(group: Group) -> Figure:
    """Draw the gradient alignment g_t of each task over the outer steps."""
    names = group.ordered(series.names(group.runs, "outer", "gradient_products"))
    if not names:
        raise NotRecordedError("no outer step was logged; only learned combiners take them")
    figure, axes = style.panels(len(names))
    window = 1
    for index, (axis, name) in enumerate(zip(axes, names, strict=True)):
        curve = series.collect(group.runs, "outer", _reader("gradient_products", name))
        if curve is None:
            continue
        window = _draw_smoothed(axis, curve, style.look(index)["color"], parts=_FEW_WINDOWS)
        _limit(axis, curve, floor=True)
        axis.axhline(0, color=style.NEUTRAL, linewidth=1.0, zorder=1)
        known = curve.values[np.isfinite(curve.values)]
        share = 100 * float(np.mean(known > 0)) if known.size else 0.0
        axis.set_title(name)
        axis.set_title(f"{share:.0f} % above 0", loc="right", fontsize="medium", fontweight="normal", color=style.FAINT)
    _label(figure, axes, x="step", y="gradient alignment $g_t$")
    _caption(figure, group, "above 0: a larger task weight lowers the primary loss", _smoothing(window))
    return figure


def evaluation_figure(group: Group) -> Figure:
    """Draw the validation metrics over epochs, with the best epoch marked, and the test result."""
    primary = next((run.metric for run in group.runs if run.metric), None)
    found = series.names(group.runs, "evaluations", "metrics")
    names = sorted(found, key=lambda name: name != primary)[:_MOST_METRICS]
    if not names:
        raise NotRecordedError("no evaluation was logged")
    figure, axes = style.panels(len(names), height=2.7)
    handles: dict[str, Any] = {}
    for axis, name in zip(axes, names, strict=True):
        _draw_metric(axis, group, name, handles=handles)
        axis.set(xlabel="epoch", ylabel=name)
        axis.set_xlim(left=0)
        style.whole_numbers(axis)
    figure.legend(handles=list(handles.values()), labels=list(handles), loc="outside lower center", ncols=3)
    if len(found) > len(names):
        _caption(figure, group, f"{len(names)} of {len(found)} metrics, the rest in metrics.jsonl")
    else:
        _caption(figure, group)
    return figure


FIGURES: dict[str, Callable[[Group], Figure]] = {
    "losses": losses_figure,
    "sensitivities": sensitivities_figure,
    "gradient_products": gradient_products_figure,
    "evaluation": evaluation_figure,
}


def _draw_metric(axis: Axes, group: Group, name: str, *, handles: dict[str, Any]) -> None:
    """Draw one metric, add the artists for the legend to `handles`, and write the numbers into the title."""
    validation, test = (series.collect(group.runs, "evaluations", metric_reader(name, split)) for split in _SPLITS)
    numbers = []
    if validation is not None and np.isfinite(validation.mean).any():
        marker = "o" if len(validation.epochs) <= 40 else ""
        (handles["validation"],) = axis.plot(
            validation.epochs, validation.mean, color=style.PALETTE[0], marker=marker, markersize=3.5
        )
        _band(axis, validation.epochs, validation, color=style.PALETTE[0])
        shown = _best_index(group, name, validation)
        numbers.append(f"validation {number(float(validation.mean[shown]))}")
        if shown >= 0:
            x, y = validation.epochs[[shown]], validation.mean[[shown]]
            (handles["best validation"],) = axis.plot(
                x, y, linestyle="", marker="o", markersize=10, markerfacecolor="none", color=style.NEUTRAL
            )
    if test is not None and np.isfinite(test.values).any():
        value = float(np.nanmean(test.values))
        handles["test"] = axis.axhline(value, color=style.PALETTE[1], linestyle="--", linewidth=1.5, zorder=1.5)
        numbers.append(f"test {number(value)}")
    axis.set_title(f"{name}   {', '.join(numbers)}")


def _best_index(group: Group, name: str, curve: series.Curve) -> int:
    """Return the index of the best primary metric; -1 (the last) for other metrics or if the direction is unknown."""
    results = next((run.results for run in group.runs if run.results), {})
    direction = results.get("higher_is_better")
    if direction is None or name != results.get("metric"):
        return -1
    return int((np.nanargmax if direction else np.nanargmin)(curve.mean))


_SPLITS = ("validation", "test")


def metric_reader(name: str, split: str) -> Callable[[Line], Any]:
    """Return a function that reads a metric of a split from the line of an evaluation; None if it is another split."""
    return lambda line: line["metrics"].get(name) if line.get("split") == split else None


def _reader(field: str, name: str) -> Callable[[Line], Any]:
    return lambda line: (line.get(field) or {}).get(name)


def _draw_smoothed(axis: Axes, curve: series.Curve, color: str, *, parts: int) -> int:
    """Draw the logged values faintly and their moving average on top; return the window."""
    smoothed, window = series.smooth(curve, parts)
    if window > 1:
        for values in curve.values:
            axis.plot(curve.steps, values, color=color, linewidth=0.7, alpha=0.3 / len(curve.values) ** 0.5)
    axis.plot(smoothed.steps, smoothed.mean, color=color, marker="" if len(curve.steps) > 1 else "o")
    _band(axis, smoothed.steps, smoothed, color=color)
    return window


def _band(axis: Axes, x: series.Floats, curve: series.Curve, *, color: str) -> None:
    """Draw a band of one standard deviation over seeds around the mean, if there are several seeds."""
    if curve.std is not None:
        low, high = curve.mean - curve.std, curve.mean + curve.std
        axis.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)


def _limit(axis: Axes, curve: series.Curve, *, floor: bool) -> None:
    """Limit the y axis to the middle 98 % of the values plus a margin, so that outliers do not flatten the curve."""
    known = curve.values[np.isfinite(curve.values)]
    if known.size < 50:
        return
    low, high = (float(value) for value in np.percentile(known, (1, 99)))
    if floor:
        low, high = min(low, 0.0), max(high, 0.0)
    room = 0.15 * (high - low)
    if room > 0:
        axis.set_ylim(low - room, high + room)


def _last(values: series.Floats) -> float:
    known = values[np.isfinite(values)]
    return float(known[-1]) if known.size else float("-inf")


def _smoothing(window: int) -> str:
    return f"faint: logged values, strong: moving average over {window}" if window > 1 else ""


def _label(figure: Figure, axes: Sequence[Axes], *, x: str, y: str) -> None:
    """Label the axes, once for all panels, with steps and epochs as whole numbers."""
    for axis in axes:
        style.whole_numbers(axis)
    if len(axes) == 1:
        axes[0].set(xlabel=x, ylabel=y)
        return
    figure.supxlabel(x, fontsize="medium")
    figure.supylabel(y, fontsize="medium")


def _caption(figure: Figure, group: Group, *texts: str) -> None:
    """Write the name of the run and the explanation of the plot above it."""
    seeds = f"{len(group.runs)} seeds: mean ± standard deviation" if len(group.runs) > 1 else ""
    style.caption(figure, group.name, seeds, *texts)
