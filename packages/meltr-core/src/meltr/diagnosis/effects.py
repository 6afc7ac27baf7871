"""Means with 95 % intervals: over repetitions, or over repetitions and examples at once. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from meltr.report.statistics import deviation, incomplete_beta, mean

Table = Sequence[Sequence[float]]
"""One row per branch, one column per part of the held-out examples."""

_TINY = 1e-12


@dataclass(frozen=True)
class Estimate:
    """A mean, what it may be, and how surprising it is if it is truly 0.

    Args:
        mean: The mean.
        low: Lower end of the 95 % interval; None if there are too few values.
        high: Its upper end.
        p: Two-sided p value against 0.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    p: float | None = None

    def as_dict(self) -> dict[str, float | None]:
        """Return the numbers by name."""
        return {"mean": self.mean, "low": self.low, "high": self.high, "p": self.p}


def of_mean(values: Sequence[float]) -> Estimate:
    """Return the mean of independent values, by Student's t."""
    spread = deviation(values)
    error = None if spread is None else spread / math.sqrt(len(values))
    return _estimate(mean(values), error, len(values) - 1)


def crossed(table: Table) -> Estimate:
    """Return the mean of a table whose rows and columns are both random draws.

    Branches share their held-out examples, so values of one column belong together, and so do those of one row. With
    the row means r, the column means c and the residuals e of R rows and B columns,

        var(mean) = var(r) / R + var(c) / B - var(e) / (R B)

    is unbiased for effects of rows and columns that add up (Searle, Casella and McCulloch, Variance Components, 1992,
    chapter 4). The estimate uses at least the larger of the first two terms, and min(R, B) - 1 degrees of freedom.

    Args:
        table: R rows of B values.
    """
    rows, columns = len(table), len(table[0])
    centre = mean([value for row in table for value in row])
    by_row = [mean(row) for row in table]
    by_column = [mean(column) for column in zip(*table, strict=True)]
    if rows < 2 or columns < 2:
        return Estimate(centre)
    left = math.fsum(
        (value - by_row[r] - by_column[c] + centre) ** 2 for r, row in enumerate(table) for c, value in enumerate(row)
    ) / ((rows - 1) * (columns - 1))
    first, second = (deviation(by_row) or 0.0) ** 2 / rows, (deviation(by_column) or 0.0) ** 2 / columns
    variance = max(first + second - left / (rows * columns), first, second)
    return _estimate(centre, math.sqrt(variance), min(rows, columns) - 1)


def difference(one: Table, other: Table) -> list[list[float]]:
    """Return one minus the other, cell by cell."""
    return [[a - b for a, b in zip(mine, theirs, strict=True)] for mine, theirs in zip(one, other, strict=True)]


def two_sided(t: float, freedom: int) -> float:
    """Return the probability that Student's t is at least as far from 0."""
    return incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t))


def quantile(freedom: int, level: float = 0.05) -> float:
    """Return the t whose two-sided probability is `level`."""
    low, high = 0.0, 1e4
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided(middle, freedom) > level else (low, middle)
    return (low + high) / 2


def _estimate(centre: float, error: float | None, freedom: int) -> Estimate:
    if error is None or not math.isfinite(error):
        return Estimate(centre)
    if error <= _TINY * abs(centre) or error == 0:
        return Estimate(centre, centre, centre)  # p is undefined: nothing varies
    half = quantile(freedom) * error
    return Estimate(centre, centre - half, centre + half, two_sided(centre / error, freedom))
