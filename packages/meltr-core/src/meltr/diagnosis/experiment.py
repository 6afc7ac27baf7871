"""The measurement: branches that differ in one loss, gradients along the way, and what a step costs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from meltr.autograd.vectors import dot
from meltr.diagnosis.subject import Arm, Subject
from meltr.verify.memory import peak_memory
from meltr.verify.timing import synchronize

Names = tuple[str, ...]


@dataclass(frozen=True)
class Budget:
    """How much is trained.

    Args:
        steps: Of one branch.
        branches: Repetitions: each has its own order of examples, random numbers and, if training starts anew, weights.
        looks: How often a branch is scored on the held-out examples, evenly spaced; the last is at its end.
    """

    steps: int
    branches: int = 8
    looks: int = 8

    def marks(self) -> list[int]:
        """Return after how many steps a branch is scored."""
        looks = min(self.looks, self.steps)
        return [round(self.steps * (look + 1) / looks) for look in range(looks)]


@dataclass
class Measured:
    """What the branches showed.

    Args:
        losses: Names, primary first.
        marks: After how many steps a branch was scored.
        scores: Losses trained on -> primary loss by branch, mark and part of the held-out examples.
        seconds: Losses trained on -> time of a step by branch.
        mebibytes: Losses trained on -> peak memory of a step; None if the device does not record it.
        vectors: Inner products of gradients by branch and mark, (T+2) x (T+2): v on held-out examples, then one row
            per loss on training examples.
    """

    losses: Names
    marks: list[int]
    scores: dict[Names, list[list[list[float]]]] = field(default_factory=dict)
    seconds: dict[Names, list[float]] = field(default_factory=dict)
    mebibytes: dict[Names, float | None] = field(default_factory=dict)
    vectors: list[list[list[list[float]]]] = field(default_factory=list)


def arms(losses: Names) -> list[Names]:
    """Return the sets of losses that branches train on.

    They are the primary loss alone, with each auxiliary loss, all losses, and all without each auxiliary loss.
    """
    primary, *others = losses
    added = [(primary, name) for name in others]
    reduced = [tuple(each for each in losses if each != name) for name in others]
    return list(dict.fromkeys([(primary,), *added, tuple(losses), *reduced]))


def measure(subject: Subject, budget: Budget, log: Callable[[str], None] = lambda line: None) -> Measured:
    """Train every arm of every branch.

    Args:
        subject: What is diagnosed.
        budget: How long.
        log: Called with one line of text about the progress.
    """
    found = Measured(subject.losses, budget.marks())
    every = arms(subject.losses)
    for names in every:
        found.mebibytes[names] = _peak(subject, names)
    for branch in range(budget.branches):
        log(f"branch {branch + 1} of {budget.branches}: {len(every)} arms of {budget.steps} steps")
        turn = branch % len(every)
        for names in (*every[turn:], *every[:turn]):
            _train(subject, branch, names, found)
    return found


def _train(subject: Subject, branch: int, names: Names, found: Measured) -> None:
    """Train one arm of a branch; the arm with all losses also shows its gradients, halfway between its scores."""
    arm = subject.begin(branch, names)
    scores, spent, done = list[list[float]](), 0.0, 0
    vectors = list[list[list[float]]]()
    for look, mark in enumerate(found.marks):
        if names == found.losses:
            vectors.append(inner_products(arm, look))
        synchronize(subject.device)
        begun = time.perf_counter()
        arm.steps(mark - done)
        synchronize(subject.device)
        spent, done = spent + time.perf_counter() - begun, mark
        scores.append(arm.held_out())
    found.scores.setdefault(names, []).append(scores)
    found.seconds.setdefault(names, []).append(spent / done)
    if names == found.losses:
        found.vectors.append(vectors)


def inner_products(arm: Arm, point: int) -> list[list[float]]:
    """Return the inner products of v and the rows of J, (T+2) x (T+2)."""
    v, rows = arm.gradients(point)
    every = [v, *rows]
    size = len(every)
    found = torch.zeros(size, size, dtype=torch.float64)
    for i in range(size):
        for j in range(i + 1):
            found[i, j] = found[j, i] = dot(every[i], every[j]).cpu()
    table: list[list[float]] = found.tolist()
    return table


def _peak(subject: Subject, names: Sequence[str]) -> float | None:
    """Return the peak memory of a step, after one that has made the optimiser's state.

    On the CPU it comes from torch's profiler, which prints to the terminal unless it was silenced before torch was
    imported, as the command does; otherwise it is not measured.
    """
    if subject.device.type == "cpu" and "KINETO_LOG_LEVEL" not in os.environ:
        return None
    arm = subject.begin(0, names)
    arm.steps(1)
    return peak_memory(lambda: arm.steps(1), subject.device)
