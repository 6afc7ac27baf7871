"""Timing of several variants side by side in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """How long one variant took.

    Args:
        seconds: One value a turn.
        ratios: The same in units of the reference of that turn.
    """

    seconds: tuple[float, ...]
    ratios: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median of the seconds."""
        return statistics.median(self.seconds)

    @property
    def ratio(self) -> float:
        """Median of the ratios."""
        return statistics.median(self.ratios)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile of the ratios."""
        if len(self.ratios) == 1:
            return self.ratios[0], self.ratios[0]
        low, _, high = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return low, high


def interleaved(
    works: Mapping[str, Callable[[], object]],
    *,
    reference: str,
    turns: int,
    device: torch.device,
    warm_up: int = 1,
    before: Callable[[str], object] | None = None,
    units: Mapping[str, int] | None = None,
) -> dict[str, Timing]:
    """Time every work once a turn, all in turn, so that a noisy machine disturbs all of them alike.

    Args:
        works: Name -> what is timed.
        reference: The work that the ratios refer to.
        turns: How often each is timed.
        device: It is waited for before and after each work.
        warm_up: Turns before, not timed.
        before: Called with the name before each work, not timed.
        units: Name -> number of units of work (steps) in it, 1 if not given; times and ratios are those of one unit.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(warm_up + turns):
        for name, work in works.items():
            if before is not None:
                before(name)
            synchronize(device)
            started = time.perf_counter()
            work()
            synchronize(device)
            if turn >= warm_up:
                seconds[name].append((time.perf_counter() - started) / (units or {}).get(name, 1))
    base = seconds[reference]
    return {
        name: Timing(tuple(own), tuple(a / b for a, b in zip(own, base, strict=True))) for name, own in seconds.items()
    }


def synchronize(device: torch.device) -> None:
    """Wait until an accelerator has done its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
