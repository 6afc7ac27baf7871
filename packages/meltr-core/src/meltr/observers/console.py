"""Progress of a run: a live bar on a terminal, plain lines in a log or a pipe."""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from meltr.folders.checkpoint_folder import BEST
from meltr.folders.run_folder import RunFolder
from meltr.hookspecs import hookimpl
from meltr.observers import text
from meltr.progress import duration

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.table import Table

    from meltr.context import Data, Evaluation, RunContext, StepRecord


class ConsoleObserver:
    """Shows the progress of a run on standard error, so that standard output stays free for ``--json``.

    On a terminal it shows a bar with epoch, speed, memory and remaining time. Below the bar is each loss with its task
    weight a_t and, after the first outer step, its gradient alignment g_t (above zero: a larger weight of the task
    helps the primary task). Elsewhere it prints at most one line every `interval` seconds, and every evaluation.

    Args:
        quiet: Show nothing.
        stream: Stream to write to; None: standard error.
        interval: Seconds between two plain lines.
        clock: Returns the current time in seconds.
    """

    def __init__(
        self,
        quiet: bool = False,
        stream: IO[str] | None = None,
        *,
        interval: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._quiet = quiet
        self._stream = stream
        self._interval = interval
        self._clock = clock
        self._console: Console | None = None
        self._live: Live | None = None
        self._total = 0
        self._epochs = 0
        self._last_line: float | None = None
        self._checkpoint: Path | None = None

    @hookimpl
    def on_run_start(self, context: RunContext, data: Data) -> None:
        """Print what is run on which data."""
        if self._quiet:
            return
        from rich.console import Console

        self.close()
        self._console = Console(file=self._stream, stderr=self._stream is None, highlight=False, soft_wrap=True)
        self._total = text.total_steps(context, data)
        self._epochs = context.spec.train.epochs
        self._last_line = self._checkpoint = None
        self._print(text.heading(context))
        if data.meta:
            self._print(f"data: {text.facts(data.meta)}")
        if context.run_dir is not None:
            self._print(f"folder: {context.run_dir}")
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._start_live(self._console)

    @hookimpl
    def on_step_end(self, context: RunContext, record: StepRecord) -> None:
        """Update the bar, or print a line if the last one is at least `interval` seconds old."""
        if self._live is not None:
            self._live.update(self._progress(record))
            return
        now = self._clock()
        due = self._last_line is None or now - self._last_line >= self._interval or record.step >= self._total
        if due:
            self._last_line = now
            self._print(text.step_line(record, self._total))

    @hookimpl
    def on_evaluation(self, context: RunContext, split: str, step: int, evaluation: Evaluation) -> None:
        """Print the metrics of an evaluation."""
        self._print(text.evaluation_line(split, step, evaluation))

    @hookimpl
    def on_checkpoint(self, context: RunContext, path: Path) -> None:
        """Remember the path of the last checkpoint."""
        self._checkpoint = path

    @hookimpl
    def on_message(self, context: RunContext, level: str, message: str) -> None:
        """Print a message or a warning."""
        self._print(message if level == "info" else f"{level}: {message}", "" if level == "info" else "yellow")

    @hookimpl
    def on_run_end(self, context: RunContext, results: Mapping[str, Any]) -> None:
        """Print the results, the cost, where the time went, and the path of the checkpoint."""
        self.close()
        if self._console is None:
            return
        self._console.print(results_table(results), soft_wrap=False)
        for line in (text.cost_text(results), text.time_text(results)):
            if line:
                self._print(line)
        best = RunFolder(context.run_dir).checkpoints / BEST if context.run_dir is not None else None
        checkpoint = best if best is not None and best.exists() else self._checkpoint
        if checkpoint is not None and context.run_dir is not None:
            self._print(f"checkpoint: {checkpoint}")

    def close(self) -> None:
        """Stop the live display; needed when a run ends with an error. Calling it twice is harmless."""
        if self._live is not None:
            self._live.stop()
            self._live = None
            atexit.unregister(self.close)

    def _print(self, line: str, style: str = "") -> None:
        if self._console is not None:
            self._console.print(line, style=style, markup=False)

    def _start_live(self, console: Console) -> None:
        from rich.live import Live

        self._live = Live("waiting for the first step ...", console=console, refresh_per_second=4, transient=True)
        self._live.start()
        atexit.register(self.close)

    def _progress(self, record: StepRecord) -> RenderableType:
        """Return the progress bar and the table of losses."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        total = max(self._total, record.step, 1)
        bar = Table.grid(padding=(0, 2))
        bar.add_row(
            ProgressBar(total=total, completed=record.step, width=24),
            f"{record.step:,}/{total:,} ({100 * record.step // total}%)",
            f"epoch {record.epoch:.2f}/{self._epochs}",
            f"{record.examples_per_second:,.0f} examples/s",
            text.memory(record.memory_mb),
            f"ETA {duration(record.eta_seconds)}",
        )
        return Group(bar, losses_table(record))


def losses_table(record: StepRecord) -> Table:
    """Return a rich table with one row per loss and one for the combined loss."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("task", style="bold")
    table.add_column("loss", justify="right")
    table.add_column("a (weight)", justify="right")
    table.add_column("g (helps if > 0)", justify="right")
    products = record.gradient_products or {}
    for name, loss in record.losses.items():
        pull = record.sensitivities.get(name)
        product = products.get(name)
        table.add_row(
            name,
            text.number(loss),
            "" if pull is None else f"{pull:.3f}",
            "" if product is None else f"{product:+.2e}",
        )
    table.add_row("combined", text.number(record.combined), "", "", style="dim")
    return table


def results_table(results: Mapping[str, Any]) -> Table:
    """Return a rich table with one row per metric, the primary one first, and one column per split.

    The baselines of a split are the columns beside it, so that the table stays narrow with many metrics.
    """
    from rich.table import Table

    splits = [split for split in ("validation", "test") if results.get(split)]
    primary = results.get("metric")
    columns: list[tuple[str, Mapping[str, Any]]] = []
    for split in splits:
        found = results[split]
        columns.append((split, text.with_skipped(found["metrics"], found.get("skipped"))))
        columns += list((found.get("baselines") or {}).items())
    title = str(results.get("run", "result"))
    table = Table(title=title, title_justify="left", min_width=len(title))
    table.add_column("metric")
    for label, _ in columns:
        table.add_column(label, justify="right", style=None if label in splits else "dim")
    metrics = dict.fromkeys(name for label, values in columns if label in splits for name in values)
    for name in sorted(metrics, key=lambda each: each != primary):
        cells = [text.metrics_text({"": values[name]}).strip() if name in values else "" for _, values in columns]
        table.add_row(name, *cells, style="bold" if name == primary else None)
    counts = {split: f"{results[split]['count']:,}" for split in splits}
    table.add_row("examples", *(counts.get(label, "") for label, _ in columns))
    return table
