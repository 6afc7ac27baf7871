"""Figures of the combiner that a run has trained: its response to each loss (Figure 3) and its surface (Figure 7)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from meltr.errors import UserError
from meltr.folders.run_folder import RunFolder
from meltr.plugins import Registry
from meltr.report import numbers, style
from meltr.report.embedding_figure import embedding_figure
from meltr.report.numbers import Drawn
from meltr.report.trained import Floats, Trained, load_trained

_POINTS = 61
"""Values of a loss in a curve."""

_GRID = 31
"""Values of each of two losses in a surface."""


def response_figure(trained: Trained) -> Drawn:
    """Draw m(l) and the task weight a_t against each loss l_t, the others at their median (Figure 3 of the paper).

    Returns:
        The figure, and its numbers as CSV: loss, value, m, weight, m at the plain sum.
    """
    figure, axes = style.panels(len(trained.names))
    rows: list[Sequence[object]] = []
    for index, (axis, name) in enumerate(zip(axes, trained.names, strict=True)):
        losses = np.tile(trained.middle, (_POINTS, 1))
        losses[:, index] = _range(trained, index, _POINTS)
        values, weights = trained.response(losses)
        color = style.look(index)["color"]
        axis.plot(losses[:, index], values, color=color, label="m(l)")
        axis.plot(losses[:, index], losses.sum(1), color=style.NEUTRAL, linewidth=1.0, linestyle=":", label="plain sum")
        right = axis.twinx()
        right.plot(losses[:, index], weights[:, index], color=color, linestyle="--", linewidth=1.2, label="task weight")
        right.grid(visible=False)
        right.margins(y=0.2)
        axis.set_title(name)
        axis.set(xlabel="loss", ylabel="combined loss" if index == 0 else "")
        right.set_ylabel("task weight" if index == len(trained.names) - 1 else "")
        rows += [
            (name, x, m, a, s)
            for x, m, a, s in zip(losses[:, index], values, weights[:, index], losses.sum(1), strict=True)
        ]
    lines = [*axes[0].get_lines(), right.get_lines()[0]]
    figure.legend(
        handles=lines,
        labels=["m(l), left axis", "plain sum, left axis", "task weight, right axis"],
        loc="outside lower center",
        ncols=1 if style.is_narrow() else 3,
    )
    style.caption(figure, trained.name, "one loss moves over its logged range, the others stay at their median")
    return figure, numbers.to_csv(("loss", "value", "combined", "task_weight", "sum"), rows)


def surface_figure(trained: Trained) -> Drawn:
    """Draw m over the primary loss and the auxiliary loss that moves it most, beside the plain sum (Figure 7).

    Returns:
        The figure, and its numbers as CSV: the two losses, m, the plain sum.

    Raises:
        UserError: If there is only one loss.
    """
    if len(trained.names) < 2:
        raise UserError("A surface needs two losses, and the run has one.", "Draw the response: --figure 3.")
    other = 1 + int(np.argmax([_spread(trained, place) for place in range(1, len(trained.names))]))
    x, y = _range(trained, 0, _GRID), _range(trained, other, _GRID)
    losses = np.tile(trained.middle, (_GRID * _GRID, 1))
    losses[:, 0], losses[:, other] = (part.ravel() for part in np.meshgrid(x, y))
    values, _ = trained.response(losses)
    total = losses.sum(1)
    figure, axes = style.panels(2, height=3.4)
    low, high = float(min(values.min(), total.min())), float(max(values.max(), total.max()))
    for axis, name, part in zip(axes, ("combined loss m(l)", "plain sum"), (values, total), strict=True):
        mesh = axis.contourf(x, y, part.reshape(_GRID, _GRID), levels=np.linspace(low, high or low + 1, 16))
        axis.set(title=name, xlabel=trained.names[0], ylabel=trained.names[other])
    figure.colorbar(mesh, ax=list(axes), label="loss")
    style.caption(figure, trained.name, "other losses stay at their median; the same colours in both")
    rows = list(zip(losses[:, 0], losses[:, other], values, total, strict=True))
    return figure, numbers.to_csv((trained.names[0], trained.names[other], "combined", "sum"), rows)


FIGURES: dict[str, tuple[str, Callable[[Trained], Drawn]]] = {
    "3": ("combiner_response", response_figure),
    "5": ("embeddings", embedding_figure),
    "7": ("combiner_surface", surface_figure),
}
"""Number of the figure in the paper -> name of its files, and how it is drawn."""


def draw_combiner(
    path: Path, registry: Registry, chosen: Sequence[str], *, output: Path | None, formats: Sequence[str]
) -> dict[str, list[Path]]:
    """Draw figures of a run's combiner; return name -> files, a CSV with the numbers among them.

    Args:
        path: Folder of one run.
        registry: The plugins found.
        chosen: Keys of `FIGURES`.
        output: Folder for the files; None: ``plots/`` in the run's folder.
        formats: File formats, from `meltr.report.style.FORMATS`.

    Raises:
        UserError: See `load_trained`.
    """
    style.check_formats(formats)
    style.require_matplotlib()
    trained = load_trained(path, registry)
    folder = RunFolder(path).plots if output is None else output
    files: dict[str, list[Path]] = {}
    with style.plotting():
        for number in chosen:
            name, figure_of = FIGURES[number]
            files[name] = numbers.write(figure_of(trained), folder, name=name, formats=formats)
    return files


def _range(trained: Trained, place: int, points: int) -> Floats:
    """Return values over the logged range of a loss; around its value if it never changed."""
    low, high = trained.low[place], trained.high[place]
    room = 0.0 if high > low else max(0.1, 0.1 * abs(high))
    return np.linspace(low - room, high + room, points)


def _spread(trained: Trained, place: int) -> float:
    """Return how much m changes over the logged range of a loss."""
    losses = np.tile(trained.middle, (2, 1))
    losses[:, place] = _range(trained, place, 2)
    values, _ = trained.response(losses)
    return abs(float(values[1] - values[0]))
