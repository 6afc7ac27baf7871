"""``log.txt``: the run in plain lines with times, to read after the terminal is gone."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meltr.folders.run_folder import RunFolder
from meltr.hookspecs import hookimpl
from meltr.observers import text

if TYPE_CHECKING:
    from meltr.context import Data, Evaluation, RunContext, StepRecord


class LogObserver:
    """Appends to ``log.txt`` in the run's folder; does nothing for a run without one.

    A resumed run appends too, below a new heading: unlike ``metrics.jsonl``, the log tells what really happened.
    """

    def __init__(self) -> None:
        self._total = 0

    @hookimpl
    def on_run_start(self, context: RunContext, data: Data) -> None:
        """Write what is run on which data."""
        self._total = text.total_steps(context, data)
        self._write(context, f"start  {text.heading(context)}")
        if data.meta:
            self._write(context, f"data  {text.facts(data.meta)}")

    @hookimpl
    def on_step_end(self, context: RunContext, record: StepRecord) -> None:
        """Write a logged step."""
        self._write(context, text.step_line(record, self._total))

    @hookimpl
    def on_evaluation(self, context: RunContext, split: str, step: int, evaluation: Evaluation) -> None:
        """Write an evaluation."""
        self._write(context, text.evaluation_line(split, step, evaluation))

    @hookimpl
    def on_checkpoint(self, context: RunContext, path: Path) -> None:
        """Write where a checkpoint lies."""
        self._write(context, f"checkpoint  {path}")

    @hookimpl
    def on_message(self, context: RunContext, level: str, message: str) -> None:
        """Write a choice that was made, or a warning."""
        self._write(context, f"{level}  {message}")

    @hookimpl
    def on_run_end(self, context: RunContext, results: Mapping[str, Any]) -> None:
        """Write the result."""
        for line in text.results_lines(results):
            self._write(context, line)

    def _write(self, context: RunContext, line: str) -> None:
        if context.run_dir is None:
            return
        context.run_dir.mkdir(parents=True, exist_ok=True)
        with RunFolder(context.run_dir).log.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")
