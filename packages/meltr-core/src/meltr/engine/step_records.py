"""What a trainer says of the steps since the last log line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from meltr.context import StepRecord
from meltr.engine.meter import peak_memory_mb
from meltr.engine.train_state import TrainState

if TYPE_CHECKING:
    from meltr.engine.trainer import Trainer

NEGATIVE_PATIENCE = 5
"""Number of consecutive log lines with a negative task weight of the primary loss before the run warns."""


def step_record(
    trainer: Trainer, losses: Mapping[str, float], pulls: Sequence[float], combined: float, rate: float
) -> StepRecord:
    """Return the record of the current step.

    Args:
        trainer: Whose step.
        losses: Means by name.
        pulls: Means of the task weights, in the same order.
        combined: Mean of the combined loss.
        rate: Examples per second.
    """
    state = trainer.state
    return StepRecord(
        step=trainer.step,
        epoch=trainer.step / trainer.steps_per_epoch,
        losses=losses,
        sensitivities=dict(zip(losses, pulls, strict=True)),
        combined=combined,
        lr=trainer.optimizer.param_groups[0]["lr"],
        examples_per_second=rate,
        memory_mb=peak_memory_mb(trainer.context.device),
        eta_seconds=trainer.clock.spent.training / trainer.step * (trainer.total_steps - trainer.step),
        gradient_products=state.last_outer[0] if state.last_outer else None,
        outer_gradient_norm=state.last_outer[1] if state.last_outer else None,
    )


def warning_if_negative(state: TrainState, primary: str, pull: float) -> str | None:
    """Count a log line, and return a warning if the weight of the primary loss has stayed negative.

    Args:
        state: Where the lines are counted.
        primary: Name of the primary loss.
        pull: Its task weight.
    """
    state.negative = state.negative + 1 if pull < 0 else 0
    if state.negative != NEGATIVE_PATIENCE:
        return None
    return (
        f"The task weight of the primary loss {primary!r} stays negative ({pull:.2g}): training increases this loss. "
        "Start at the plain sum (--set start=sum) or raise gamma (--set gamma=1)."
    )
