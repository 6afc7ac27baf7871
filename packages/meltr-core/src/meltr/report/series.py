"""Curves over seeds from the lines of metrics.jsonl: aligned, smoothed, averaged per epoch."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from meltr.report.runs import Line, Run

Floats = NDArray[np.float64]
Kind = Literal["train", "outer", "evaluations"]

_FEW_EPOCHS = 3
_PARTS = 10


@dataclass(frozen=True)
class Curve:
    """Values of one quantity over training, for each seed.

    Args:
        steps: Inner steps, (n,), increasing.
        epochs: The same points in epochs, (n,).
        values: (seeds, n), NaN where a seed has none (a killed run) or the value was not finite.
    """

    steps: Floats
    epochs: Floats
    values: Floats

    @property
    def mean(self) -> Floats:
        """Mean over the seeds that have a value, (n,)."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            return np.asarray(np.nanmean(self.values, axis=0), dtype=np.float64)

    @property
    def std(self) -> Floats | None:
        """Sample standard deviation over seeds, (n,), NaN where fewer than two have a value; None for one seed."""
        if len(self.values) < 2:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            return np.asarray(np.nanstd(self.values, axis=0, ddof=1), dtype=np.float64)


def collect(runs: Sequence[Run], kind: Kind, read: Callable[[Line], Any]) -> Curve | None:
    """Return the curve of the values that `read` returns for each line.

    Args:
        runs: The seeds; a seed without any value is skipped.
        kind: The kind of lines to read.
        read: Returns a number, or None if the line does not have it.

    Returns:
        The curve; None if no line has a value.
    """
    tables = []
    epoch_of: dict[int, float] = {}
    for run in runs:
        table = {}
        for line in getattr(run, kind):
            value = read(line)
            if value is not None:
                step = int(line["step"])
                table[step] = float(value) if math.isfinite(value) else math.nan
                epoch_of[step] = float(line["epoch"])
        if table:
            tables.append(table)
    if not tables:
        return None
    steps = sorted(epoch_of)
    return Curve(
        steps=np.array(steps, dtype=np.float64),
        epochs=np.array([epoch_of[step] for step in steps]),
        values=np.array([[table.get(step, math.nan) for step in steps] for table in tables]),
    )


def names(runs: Sequence[Run], kind: Kind, field: str) -> tuple[str, ...]:
    """Return the keys of `field` in the lines of `kind`, in the order of their first appearance."""
    found: dict[str, None] = {}
    for run in runs:
        for line in getattr(run, kind):
            found.update(dict.fromkeys(line.get(field) or ()))
    return tuple(found)


def per_epoch(curve: Curve) -> Curve:
    """Return the mean over each epoch, or over each tenth of a run that has fewer than three epochs.

    The value at epoch e is the mean over the lines with e - 1 < epoch <= e.
    """
    last = float(curve.epochs.max())
    width = 1.0 if last >= _FEW_EPOCHS else last / _PARTS or 1.0
    index = np.maximum(np.ceil(curve.epochs / width - 1e-6).astype(np.int64), 1)
    parts = np.unique(index)
    means = [Curve(curve.steps, curve.epochs, curve.values[:, index == part].T).mean for part in parts]
    return Curve(
        steps=np.array([curve.steps[index == part].max() for part in parts]),
        epochs=parts * width,
        values=np.stack(means, axis=1),
    )


def smooth(curve: Curve, parts: int) -> tuple[Curve, int]:
    """Return the centred moving average of each seed, and the length of the window.

    The window is truncated at the ends of the run; NaN values are skipped.

    Args:
        curve: The curve to smooth.
        parts: The window is the run's length divided by this.
    """
    window = max(1, 2 * (len(curve.steps) // parts // 2) + 1)
    if window == 1:
        return curve, 1
    ones = np.ones(window)
    known = np.isfinite(curve.values)
    sums = [np.convolve(row, ones, mode="same") for row in np.where(known, curve.values, 0.0)]
    counts = [np.convolve(row, ones, mode="same") for row in known.astype(np.float64)]
    with np.errstate(invalid="ignore", divide="ignore"):
        values = np.where(known, np.array(sums) / np.array(counts), np.nan)
    return Curve(curve.steps, curve.epochs, values), window
