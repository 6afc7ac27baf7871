"""The training state of a checkpoint, with each field listed once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class TrainState:
    """Counters of a run. Every field is saved with a checkpoint and restored from it.

    Args:
        step: Inner steps taken.
        seconds: Training time; evaluations and checkpoints do not count.
        best: Best value of the primary metric on the validation split; None before the first evaluation.
        best_step: Inner steps taken when it was found.
        best_evaluation: The evaluation that found it, as in ``results.json``.
        last_outer: The last outer step: g by name of the loss, and the norm of phi's gradient.
        negative: Number of consecutive log lines with a negative weight of the primary loss.
    """

    step: int = 0
    seconds: float = 0.0
    best: float | None = None
    best_step: int = 0
    best_evaluation: dict[str, Any] | None = None
    last_outer: tuple[dict[str, float], float] | None = None
    negative: int = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the fields by name, as plain values."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> TrainState:
        """Return a state from the result of `state_dict`; unknown entries are ignored."""
        return cls(**{field.name: state[field.name] for field in dataclasses.fields(cls)})
