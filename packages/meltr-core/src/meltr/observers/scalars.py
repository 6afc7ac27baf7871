"""The numbers of a run under the names that TensorBoard and the trackers show."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meltr.context import Evaluation, StepRecord


def of_step(record: StepRecord) -> dict[str, float]:
    """Return losses, task weights, gradient alignments and the state of training of a logged step."""
    found = {f"loss/{name}": value for name, value in record.losses.items()}
    found |= {f"sensitivity/{name}": value for name, value in record.sensitivities.items()}
    found |= {f"gradient_product/{name}": value for name, value in (record.gradient_products or {}).items()}
    found |= {
        "loss/combined": record.combined,
        "training/lr": record.lr,
        "training/epoch": record.epoch,
        "training/examples_per_second": record.examples_per_second,
        "training/memory_mb": record.memory_mb,
    }
    if record.outer_gradient_norm is not None:
        found["training/outer_gradient_norm"] = record.outer_gradient_norm
    return found


def of_evaluation(split: str, evaluation: Evaluation) -> dict[str, float]:
    """Return the metrics of an evaluation.

    Args:
        split: ``validation`` or ``test``.
        evaluation: The evaluation.
    """
    return {f"{split}/{name}": value for name, value in evaluation.metrics.items()}
