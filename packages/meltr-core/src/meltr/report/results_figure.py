"""The result of every configuration and seed: what a comparison's table says, as a picture."""

from __future__ import annotations

import numpy as np

from meltr.report import numbers, plots, series, style
from meltr.report.compare import Comparison
from meltr.report.numbers import Drawn
from meltr.report.runs import Group


def results_figure(comparison: Comparison) -> Drawn:
    """Draw the metric of every seed, the mean, and one standard deviation; a line joins the same seed.

    Returns:
        The figure, and its numbers as CSV: run, seed, value.
    """
    rows = comparison.rows
    figure, (axis,) = style.panels(1)
    style.resize(figure, 6.4, 1.2 + 0.5 * len(rows))
    for seed in dict.fromkeys(seed for row in rows for seed in row.values):
        known = [(row.values[seed], place) for place, row in enumerate(rows) if seed in row.values]
        axis.plot(*zip(*known, strict=True), color=style.NEUTRAL, linewidth=0.8, alpha=0.35, zorder=1)
    for place, row in enumerate(rows):
        color = style.run_look(place)["color"]
        axis.errorbar(row.mean, place, xerr=row.std, color=color, marker="D", markersize=7, capsize=4, zorder=3)
        axis.scatter(list(row.values.values()), [place] * len(row.values), s=18, color=color, alpha=0.55, zorder=2)
    axis.set_yticks(range(len(rows)), [row.label for row in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.grid(visible=False, axis="y")
    direction = {True: ", higher is better", False: ", lower is better", None: ""}[comparison.higher_is_better]
    axis.set_xlabel(f"{comparison.split} {comparison.metric}{direction}")
    style.caption(figure, "dots: seeds; diamond: mean ± standard deviation")
    table = [(row.label, seed, value) for row in rows for seed, value in row.values.items()]
    return figure, numbers.to_csv(("run", "seed", "value"), table)


def metric_curves_figure(groups: list[tuple[str, Group]], metric: str) -> Drawn | None:
    """Draw the validation metric of every configuration over epochs: mean, and one standard deviation over seeds.

    Returns:
        The figure, and its numbers as CSV: run, epoch, mean, std; None if no run logged the metric on validation.
    """
    rows: list[tuple[object, ...]] = []
    figure, (axis,) = style.panels(1)
    for place, (label, group) in enumerate(groups):
        curve = series.collect(group.runs, "evaluations", plots.metric_reader(metric, "validation"))
        if curve is None:
            continue
        look = style.run_look(place)
        axis.plot(curve.epochs, curve.mean, label=label, markersize=3.5, **look)
        if curve.std is not None:
            low, high = curve.mean - curve.std, curve.mean + curve.std
            axis.fill_between(curve.epochs, low, high, color=look["color"], alpha=0.15, linewidth=0)
        stds = np.full(len(curve.epochs), np.nan) if curve.std is None else curve.std
        rows += [(label, *map(float, row)) for row in zip(curve.epochs, curve.mean, stds, strict=True)]
    if not rows:
        return None
    axis.set(xlabel="epoch", ylabel=f"validation {metric}")
    style.whole_numbers(axis)
    figure.legend(loc="outside lower center", ncols=2 if style.is_narrow() else 4)
    return figure, numbers.to_csv(("run", "epoch", "mean", "std"), rows)
