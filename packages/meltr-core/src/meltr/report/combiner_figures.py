"""Figures of the combiner that a run has trained: its response to each loss (Figure 3) and its surface (Figure 7)."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from meltr.combiners.base import Combiner, GradientCombiner, sensitivities
from meltr.engine.checkpoints import Checkpoints, load_module
from meltr.errors import UserError
from meltr.files import write_text
from meltr.folders.checkpoint_folder import CheckpointFolder
from meltr.folders.run_folder import RunFolder
from meltr.plugins import Registry, load_object
from meltr.report import series, style
from meltr.report.runs import Run, load_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]

_POINTS = 61
"""Values of a loss in a curve."""

_GRID = 31
"""Values of each of two losses in a surface."""


@dataclass(frozen=True)
class Trained:
    """The combiner of a run's last checkpoint, and the losses that the run has seen.

    Args:
        name: Name of the run.
        combiner: m, in eval mode.
        names: Names of the losses, primary first.
        low: Smallest logged value of each loss, (T+1,).
        high: Largest logged value, (T+1,).
        middle: Median of the logged values, (T+1,).
    """

    name: str
    combiner: Combiner
    names: tuple[str, ...]
    low: Floats
    high: Floats
    middle: Floats

    def response(self, losses: Floats) -> tuple[Floats, Floats]:
        """Return m(l), (N,), and the task weights a, (N, T+1), at each row of `losses`, (N, T+1)."""
        found = [sensitivities(self.combiner, row) for row in torch.from_numpy(losses).float()]
        values = np.array([float(m.detach()) for m, _ in found])
        return values, torch.stack([a for _, a in found]).double().numpy()


def load_trained(path: Path, registry: Registry) -> Trained:
    """Load the combiner of a run.

    Args:
        path: Folder of one run.
        registry: The plugins found.

    Raises:
        UserError: If the folder holds no run with a checkpoint, nothing was logged, or the combiner weighs gradients
            and is no function of the losses.
    """
    run, folder = load_run(path), RunFolder(path)
    spec = folder.read_spec()
    built = load_object(registry.combiner(spec.combiner).factory)(spec.losses, **spec.combiner_options)
    if isinstance(built, GradientCombiner):
        raise UserError(
            f"{spec.combiner!r} combines gradients, so there is no function of the losses to draw.",
            "Draw its task weights over epochs: --figure 4.",
        )
    checkpoint = CheckpointFolder(Checkpoints(folder.checkpoints).resolve("last"))
    load_module(checkpoint.combiner, built, "combiner")
    logged = _logged(run, spec.losses)
    low, middle, high = (np.asarray(each, dtype=np.float64) for each in np.percentile(logged, (0, 50, 100), axis=0))
    return Trained(run.name, built.eval(), tuple(spec.losses), low, high, middle)


def _logged(run: Run, names: Sequence[str]) -> Floats:
    curves = [
        series.collect([run], "train", lambda line, name=name: (line.get("losses") or {}).get(name))  # type: ignore[misc]
        for name in names
    ]
    if any(curve is None for curve in curves):
        raise UserError(
            f"{run.path} has logged no losses yet.", "Wait for the first line, or log more often: log_every."
        )
    known = np.stack([curve.values[0] for curve in curves if curve is not None], axis=1)
    known = known[np.isfinite(known).all(axis=1)]
    if not len(known):
        raise UserError(f"{run.path} has logged no finite losses.", "Train another run.")
    return np.asarray(known, dtype=np.float64)


def response_figure(trained: Trained) -> tuple[Figure, str]:
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
        ncols=3,
    )
    _caption(figure, trained, "one loss moves over its logged range, the others stay at their median")
    return figure, _csv(("loss", "value", "combined", "task_weight", "sum"), rows)


def surface_figure(trained: Trained) -> tuple[Figure, str]:
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
    _caption(figure, trained, "other losses stay at their median; the same colours in both")
    rows = list(zip(losses[:, 0], losses[:, other], values, total, strict=True))
    return figure, _csv((trained.names[0], trained.names[other], "combined", "sum"), rows)


FIGURES: dict[str, tuple[str, Callable[[Trained], tuple[Figure, str]]]] = {
    "3": ("combiner_response", response_figure),
    "7": ("combiner_surface", surface_figure),
}
"""Number of the figure in the paper -> name of its files, and how it is drawn."""


def draw_combiner(
    path: Path, registry: Registry, numbers: Sequence[str], *, output: Path | None, formats: Sequence[str]
) -> dict[str, list[Path]]:
    """Draw figures of a run's combiner; return name -> files, a CSV with the numbers among them.

    Args:
        path: Folder of one run.
        registry: The plugins found.
        numbers: Keys of `FIGURES`.
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
        for number in numbers:
            name, figure_of = FIGURES[number]
            figure, table = figure_of(trained)
            files[name] = style.save(figure, folder, name=name, formats=formats)
            write_text(folder / f"{name}.csv", table)
            files[name].append(folder / f"{name}.csv")
    return files


def _caption(figure: Figure, trained: Trained, text: str) -> None:
    figure.suptitle(f"{trained.name}  |  {text}", fontsize="small", color="#555555", x=0.01, ha="left")


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


def _csv(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([[f"{cell:.8g}" if isinstance(cell, float) else cell for cell in row] for row in rows])
    return text.getvalue()
