"""What a training curve tells: has it settled, and how many steps does one arm need to get where another one is?"""

from __future__ import annotations

from collections.abc import Sequence

from meltr.diagnosis.effects import Table
from meltr.report.statistics import mean

Scores = Sequence[Sequence[Sequence[float]]]
"""Primary loss by branch, mark and part of the held-out examples."""

SETTLED = 0.05
"""A curve has settled if its last quarter brings less than this share of what the whole of it brings."""


def best(scores: Scores) -> Table:
    """Return every branch at its best mark, as early stopping would choose it: branches x parts."""
    return [min(branch, key=mean) for branch in scores]


def curve(scores: Scores) -> list[float]:
    """Return the lowest mean so far at every mark, over branches and parts."""
    lowest = [[min(mean(look) for look in branch[: mark + 1]) for mark in range(len(branch))] for branch in scores]
    return [mean(values) for values in zip(*lowest, strict=True)]


def fall(line: Sequence[float]) -> float:
    """Return how much a curve falls from its first mark to its last."""
    return line[0] - line[-1]


def settled(line: Sequence[float]) -> bool:
    """Return whether a curve has stopped falling; too few marks show nothing."""
    if len(line) < 4:
        return False
    return line[-1 - len(line) // 4] - line[-1] <= SETTLED * fall(line)


def reached(line: Sequence[float], marks: Sequence[int], value: float) -> float | None:
    """Return after how many steps a curve has come down to a value, between marks by interpolation; None: never."""
    for place, (step, now) in enumerate(zip(marks, line, strict=True)):
        if now <= value:
            if place == 0:
                return float(step)
            before, past = line[place - 1], marks[place - 1]
            return past + (step - past) * (before - value) / (before - now)
    return None
