"""The training state of a checkpoint, with each field listed once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass
class TrainState:
    """Counters of a run. Every field is saved with a checkpoint and restored from it.

    Args:
        step: Inner steps taken.
        best: Best value of the primary metric on the validation split; None before the first evaluation.
        best_step: Inner steps taken when it was found.
        best_evaluation: The evaluation that found it, as in ``results.json``.
        last_outer: The last outer step: g by name of the loss, and the norm of phi's gradient.
        negative: Number of consecutive log lines with a negative weight of the primary loss.
        due: Whether the evaluation of this step is still to be done: the run was stopped before its end.
        skipped: Training items that others stood in for, because they could not be read.
    """

    step: int = 0
    best: float | None = None
    best_step: int = 0
    best_evaluation: dict[str, Any] | None = None
    last_outer: tuple[dict[str, float], float] | None = None
    negative: int = 0
    due: bool = False
    skipped: list[int] = dataclasses.field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        """Return the fields by name, as plain values."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> TrainState:
        """Return a state from the result of `state_dict`; unknown entries are ignored."""
        later = ("due", "skipped")  # Earlier versions did not save them.
        fields = [field.name for field in dataclasses.fields(cls) if field.name not in later or field.name in state]
        return cls(**{name: state[name] for name in fields})

    def newly_skipped(self, found: Mapping[int, str]) -> list[str]:
        """Count skipped items, and return a line for each that was not counted before.

        Args:
            found: Index -> name and reason.
        """
        new = [index for index in found if index not in self.skipped]
        lines = []
        for index in new:
            self.skipped = [*self.skipped, index]
            lines.append(f"skipped {found[index]} ({len(self.skipped)} skipped so far)")
        return lines

    def forget_best(self) -> None:
        """Let the next evaluation be the best one: the checkpoint of the best one so far is lost."""
        self.best, self.best_step, self.best_evaluation = None, 0, None


class Stateful(Protocol):
    """A part of the trainer whose state is saved in a checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        """Return plain values and tensors."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> object:
        """Continue from the state that `state_dict` returned."""
