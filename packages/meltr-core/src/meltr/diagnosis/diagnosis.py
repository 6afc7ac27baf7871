"""The answer of a diagnosis: verdicts, the losses to keep, and how it was measured; as text and as a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from meltr.autograd.random_state import RandomState
from meltr.diagnosis import curves
from meltr.diagnosis.experiment import Budget, Measured, measure
from meltr.diagnosis.own_loop import OwnLoop
from meltr.diagnosis.subject import Subject
from meltr.diagnosis.verdicts import Verdict, judge
from meltr.errors import UserError
from meltr.files import encode, write_text

FORMAT = 1


@dataclass(frozen=True)
class Diagnosis:
    """What a diagnosis found.

    Args:
        losses: Names, primary first.
        verdicts: One per auxiliary loss.
        budget: How much was trained.
        curves: Losses trained on, joined by ``+`` -> the lowest held-out primary loss so far at every mark.
        marks: After how many steps the curves were taken.
        start: Where the branches started, in words.
    """

    losses: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    budget: Budget
    curves: Mapping[str, list[float]]
    marks: list[int]
    start: str

    @classmethod
    def of(cls, found: Measured, budget: Budget, start: str) -> Diagnosis:
        """Judge what was measured."""
        lines = {"+".join(names): curves.curve(scores) for names, scores in found.scores.items()}
        return cls(found.losses, tuple(judge(found)), budget, lines, found.marks, start)

    def __getitem__(self, task: str) -> Verdict:
        """Return the verdict about a loss; KeyError if there is none."""
        found = {each.task: each for each in self.verdicts}
        return found[task]

    def __str__(self) -> str:
        """Return the sentences, and what follows from them."""
        return "\n".join([*(each.sentence for each in self.verdicts), f"Settings: {self.settings}"])

    @property
    def keep(self) -> tuple[str, ...]:
        """The primary loss and those that help."""
        return (self.losses[0], *(each.task for each in self.verdicts if each.verdict == "helps"))

    @property
    def settings(self) -> str:
        """The words for ``meltr run`` that keep only the losses that help."""
        return f"--set losses={','.join(self.keep)}" if len(self.keep) > 1 else "--combiner primary"

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values: the content of diagnose.json."""
        return {
            "format": FORMAT,
            "verdicts": [each.as_dict() for each in self.verdicts],
            "losses": list(self.losses),
            "keep": list(self.keep),
            "settings": self.settings,
            "budget": asdict(self.budget),
            "start": self.start,
            "marks": self.marks,
            "curves": dict(self.curves),
        }

    def save(self, path: Path) -> None:
        """Write the content of `as_dict` as JSON, at once or not at all."""
        write_text(path, json.dumps(encode(self.as_dict()), indent=1) + "\n")


def of_subject(
    subject: Subject, budget: Budget, *, start: str, log: Callable[[str], None] = lambda line: None
) -> Diagnosis:
    """Diagnose something that trains; random number generators are left as they were."""
    before = RandomState([subject.device])
    try:
        return Diagnosis.of(measure(subject, budget, log), budget, start)
    finally:
        before.restore()


def diagnose(
    model: nn.Module,
    losses: Callable[..., Mapping[str, Tensor]],
    train: Iterable[Any],
    held_out: Iterable[Any],
    *,
    optimizer: Callable[[], torch.optim.Optimizer],
    steps: int,
    branches: int = 6,
    looks: int = 12,
    start: Callable[[int], object] | None = None,
    weight: float = 1.0,
    seed: int = 0,
    log: Callable[[str], None] = lambda line: None,
) -> Diagnosis:
    """Tell for every auxiliary loss whether it helps the primary one, by short trainings with and without it.

    Every branch trains the model with the primary loss alone, with each auxiliary loss, with all, and with all but
    each: 2T + 2 times `steps` steps for T auxiliary losses (twice for one). What is compared is the primary loss on
    held-out examples at the best look. Afterwards weights, buffers, gradients, modes and random numbers are as before.

    Args:
        model: The model; it is trained and restored.
        losses: Called as ``losses(batch)``, or ``losses(batch, names)`` if it has a second parameter without default;
            returns name -> 0-dim loss, primary first. `names` are the losses that are wanted, None means all. With the
            first form every loss is always computed, so the time of a loss is that of its backward pass alone.
        train: Training batches: a sequence, which is shuffled, or something that can be iterated again, such as a
            DataLoader.
        held_out: Two or more batches of examples that are not trained on; about eight are good.
        optimizer: Returns a new optimiser of the weights, those outside the model included.
        steps: Training steps of a branch: enough for the primary loss to stop falling, if you can.
        branches: Repetitions; with fewer than four, little can be told.
        looks: How often a branch is scored.
        start: Called with a seed at the start of every branch, to give the model new weights in place; None: every
            branch starts at the current weights, and branches differ in the order of examples and in random numbers.
        weight: Of every auxiliary loss in the sum.
        seed: Of everything random.
        log: Called with one line of text about the progress.

    Raises:
        UserError: If there is only one loss, a loss is not finite, or examples are missing.
    """
    budget = checked(steps, branches, looks)
    before = RandomState([each.device for each in model.parameters()])
    try:
        loop = OwnLoop(model, losses, train, held_out, optimizer=optimizer, start=start, weight=weight, seed=seed)
        try:
            words = "the current weights" if start is None else "new weights in every branch"
            return of_subject(loop, budget, start=words, log=log)
        finally:
            loop.restore()
    finally:
        before.restore()


def checked(steps: int, branches: int, looks: int) -> Budget:
    """Return the budget.

    Raises:
        UserError: If it is too small for any answer.
    """
    if branches < 2:
        raise UserError(f"{branches} branches: an interval needs at least 2", "Six are the default.")
    if steps < 1 or looks < 1:
        raise UserError(f"{steps} steps and {looks} looks: both must be at least 1")
    return Budget(steps, branches, looks)
