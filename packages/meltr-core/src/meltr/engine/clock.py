"""Where the time of a run goes: waiting for batches, steps, evaluations and checkpoints."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

LATE = 0.1
"""Share of the training time above which waiting for batches is what bounds a run."""

FIRST = 2
"""Steps of each kind that prices leave aside after every start: they compile, record and choose."""

ENOUGH = 6
"""Later steps without which nothing is said of what bounds a run."""

Bound = Literal["batches", "launches", "computation"]


@dataclass
class Spent:
    """Seconds by what they were spent on, in the first process of a run. All fields are saved with a checkpoint.

    Args:
        batches: Waiting for training batches.
        steps: Training steps, and logging between them.
        evaluations: Evaluations of any split.
        checkpoints: Writing checkpoints.
        outer_steps: Steps with an outer step.
        plain: Number and seconds of steps without an outer step, without the first ones after a start.
        outer: The same of steps with one.
        waited: Seconds that these steps waited for their batches.
        begun: Number of steps begun on a GPU.
        idle: Number of those at whose beginning the GPU had finished all work.
    """

    batches: float = 0.0
    steps: float = 0.0
    evaluations: float = 0.0
    checkpoints: float = 0.0
    outer_steps: int = 0
    plain: list[float] = field(default_factory=lambda: [0, 0.0])
    outer: list[float] = field(default_factory=lambda: [0, 0.0])
    waited: float = 0.0
    begun: int = 0
    idle: int = 0

    @property
    def training(self) -> float:
        """Seconds of training: batches and steps."""
        return self.batches + self.steps

    @property
    def in_outer_steps(self) -> float | None:
        """Seconds that outer steps add; None where steps of a kind are too few to know."""
        if not self.outer_steps:
            return 0.0
        if not self.plain[0] or not self.outer[0]:
            return None
        extra = self.outer[1] / self.outer[0] - self.plain[1] / self.plain[0]
        return min(self.steps, max(0.0, self.outer_steps * extra))

    @property
    def bound_by(self) -> Bound | None:
        """What a faster run needs first; None after few steps.

        ``batches``: their source. ``launches``: the host, while the GPU waits for it. Else ``computation``.
        """
        if self.plain[0] + self.outer[0] < ENOUGH:
            return None
        waits = not self.begun or self.idle > self.begun / 2
        if waits and self.waited > LATE * (self.waited + self.plain[1] + self.outer[1]):
            return "batches"
        return "launches" if self.begun and waits else "computation"

    def summary(self) -> dict[str, Any]:
        """Return seconds by part for ``results.json``; ``outer_steps`` is a part of ``steps``."""
        parts = {
            "batches": self.batches,
            "steps": self.steps,
            "outer_steps": self.in_outer_steps,
            "evaluations": self.evaluations,
            "checkpoints": self.checkpoints,
        }
        return {name: None if seconds is None else round(seconds, 3) for name, seconds in parts.items()}


class Clock:
    """Measures `Spent`. On a GPU it never waits: events tell when a step began and ended there.

    Args:
        device: Device of the run.
        left_out: Called with the seconds of every evaluation and checkpoint.

    Attributes:
        spent: What was measured so far.
    """

    def __init__(self, device: torch.device, left_out: Callable[[float], object] = lambda seconds: None) -> None:
        self.spent = Spent()
        self._device, self._left_out = device, left_out
        self._seen = {"plain": 0, "outer": 0}
        self._last = self._waited = 0.0
        self._begin: Any = None
        self._end: Any = None
        self._running: deque[tuple[str, Any, Any]] = deque()

    def start(self) -> None:
        """Begin to measure, after a start or a resumption."""
        self._last, self._waited = time.perf_counter(), 0.0

    def timed(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yield the batches; the time until each of them comes is time spent waiting."""
        while True:
            asked = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self._waited += time.perf_counter() - asked
            self._begin_step()
            yield batch

    def end_step(self, *, outer: bool) -> None:
        """Count a step, from the end of the one before.

        Args:
            outer: It had an outer step.
        """
        now = time.perf_counter()
        waited, step = self._waited, now - self._last - self._waited
        self._last, self._waited = now, 0.0
        self.spent.batches += waited
        self.spent.steps += step
        self.spent.outer_steps += outer
        kind = "outer" if outer else "plain"
        self._seen[kind] += 1
        counts = self._seen[kind] > FIRST
        self.spent.waited += waited if counts else 0.0
        if self._begin is None:
            if counts:
                self._add(kind, step)
            return
        self._end = self._mark()
        if counts:
            self._running.append((kind, self._begin, self._end))
        while self._running and self._running[0][2].query():
            kind, begin, end = self._running.popleft()
            self._add(kind, begin.elapsed_time(end) / 1000)

    @contextmanager
    def aside(self, part: Literal["evaluations", "checkpoints"]) -> Iterator[None]:
        """A context for work that does not count as training."""
        started = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - started
            setattr(self.spent, part, getattr(self.spent, part) + elapsed)
            self._last += elapsed
            self._left_out(elapsed)

    def state_dict(self) -> dict[str, Any]:
        """Return what was spent as plain values."""
        return dataclasses.asdict(self.spent)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state that `state_dict` returned."""
        known = {each.name for each in dataclasses.fields(Spent)}
        self.spent = Spent(**{name: value for name, value in state.items() if name in known})

    def _begin_step(self) -> None:
        """Note whether a GPU has finished the step before."""
        if self._device.type != "cuda":
            return
        self.spent.begun += self._end is not None
        self.spent.idle += self._end is not None and self._end.query()
        self._begin = self._mark()

    def _mark(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _add(self, kind: str, seconds: float) -> None:
        counted = getattr(self.spent, kind)
        counted[0] += 1
        counted[1] += seconds
