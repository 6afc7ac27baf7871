"""TensorBoard: the numbers of ``metrics.jsonl`` as scalars, in ``tensorboard/`` in the run's folder."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from meltr.errors import UserError
from meltr.folders.run_folder import RunFolder
from meltr.hookspecs import hookimpl
from meltr.observers import scalars

if TYPE_CHECKING:
    from meltr.context import Evaluation, RunContext, StepRecord


class TensorboardObserver:
    """Writes losses, task weights, gradient alignments, speed and metrics for TensorBoard.

    The first event of a resumed run hides the events that an interrupted run wrote after its checkpoint.

    Raises:
        UserError: If TensorBoard is not installed.
    """

    def __init__(self) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise UserError(
                "TensorBoard output was requested, but the package 'tensorboard' is not installed",
                "Install it with: pip install 'meltr-core[tensorboard]'",
            )
        self._writer: Any = None

    @hookimpl
    def on_step_end(self, context: RunContext, record: StepRecord) -> None:
        """Write a logged step."""
        self._scalars(context, record.step, scalars.of_step(record))

    @hookimpl
    def on_evaluation(self, context: RunContext, split: str, step: int, evaluation: Evaluation) -> None:
        """Write an evaluation."""
        self._scalars(context, step, scalars.of_evaluation(split, evaluation))
        if self._writer is not None:
            self._writer.flush()

    @hookimpl
    def on_run_end(self, context: RunContext, results: Mapping[str, Any]) -> None:
        """Close the event file."""
        self.close()

    def close(self) -> None:
        """Close the event file; calling it twice is harmless."""
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
