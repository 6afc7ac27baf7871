"""TensorBoard: the numbers of ``metrics.jsonl`` as scalars, below ``tensorboard/`` in the run's folder."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from meltr.errors import UserError
from meltr.folders.run_folder import RunFolder
from meltr.hookspecs import hookimpl

if TYPE_CHECKING:
    from meltr.context import Evaluation, RunContext, StepRecord


class TensorboardObserver:
    """Writes losses, sensitivities, gradient products, speed and metrics for TensorBoard.

    The first event of a resumed run hides what an interrupted run wrote past the checkpoint.

    Raises:
        UserError: If TensorBoard is not installed.
    """

    def __init__(self) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise UserError(
                "TensorBoard output was asked for, but the package 'tensorboard' is not installed",
                "Install it with: pip install 'meltr-core[tensorboard]'",
            )
        self._writer: Any = None

    @hookimpl
    def on_step_end(self, context: RunContext, record: StepRecord) -> None:
        """Write a logged step."""
        self._scalars(context, record.step, {f"loss/{name}": value for name, value in record.losses.items()})
        pulls = {f"sensitivity/{name}": value for name, value in record.sensitivities.items()}
        products = {f"gradient_product/{name}": value for name, value in (record.gradient_products or {}).items()}
        others = {
            "loss/combined": record.combined,
            "training/lr": record.lr,
            "training/epoch": record.epoch,
            "training/examples_per_second": record.examples_per_second,
            "training/memory_mb": record.memory_mb,
        }
        if record.outer_gradient_norm is not None:
            others["training/outer_gradient_norm"] = record.outer_gradient_norm
        self._scalars(context, record.step, pulls | products | others)

    @hookimpl
    def on_evaluation(self, context: RunContext, split: str, step: int, evaluation: Evaluation) -> None:
        """Write an evaluation."""
        self._scalars(context, step, {f"{split}/{name}": value for name, value in evaluation.metrics.items()})
        if self._writer is not None:
            self._writer.flush()

    @hookimpl
    def on_run_end(self, context: RunContext, results: Mapping[str, Any]) -> None:
        """Close the event file."""
        self.close()

    def close(self) -> None:
        """Close the event file; calling it twice does no harm."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _scalars(self, context: RunContext, step: int, values: Mapping[str, float]) -> None:
        if context.run_dir is None:
            return
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(RunFolder(context.run_dir).tensorboard), purge_step=step)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
