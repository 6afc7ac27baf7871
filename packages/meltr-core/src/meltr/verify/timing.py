"""Timing of several variants, interleaved in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Times of one variant.

    Args:
        seconds: One value per turn.
        ratios: The same relative to the reference of that turn.
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
    """Time each piece of work once per turn, in alternation, so that noise of the machine affects all alike.

    Args:
        works: Name -> the work to time.
        reference: Name of the work that the ratios refer to.
        turns: Number of times that each one is timed.
        device: Device to synchronise with before and after each one.
        warm_up: Number of turns before that are not timed.
        before: Called with the name before each one, not timed.
        units: Name -> number of units (steps) in the work, 1 if missing; times and ratios are per unit.
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
    """Wait until an accelerator has finished its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
