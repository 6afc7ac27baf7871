"""Progress of a long count: a bar on a terminal, plain lines in a log or a pipe."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live


def duration(seconds: float) -> str:
    """Return `seconds` as ``4:05`` or ``1:04:05``; ``-`` if unknown.

    >>> duration(3845.2)
    '1:04:05'
    """
    if not math.isfinite(seconds) or seconds < 0:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class ProgressCounter:
    """Shows a count on standard error, from its first value on; used as a context manager.

    Args:
        noun: What is counted, in the plural.
        quiet: Show nothing.
        lines: Without a terminal, write plain lines; False: show nothing there.
        stream: Stream to write to; None: standard error.
        interval: Seconds between two plain lines.
        clock: Returns the current time in seconds.
    """

    def __init__(
        self,
        noun: str,
        *,
        quiet: bool = False,
        lines: bool = True,
        stream: IO[str] | None = None,
        interval: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._noun, self._quiet, self._lines = noun, quiet, lines
        self._stream, self._interval, self._clock = stream, interval, clock
        self._console: Console | None = None
        self._live: Live | None = None
        self._first: tuple[float, int] | None = None
        self._last = float("-inf")

    def __enter__(self) -> ProgressCounter:
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, done: int, total: int, failed: int = 0) -> None:
        """Show that `done` of `total` are done, `failed` of which failed."""
        if self._quiet:
            return
        console = self._console or self._start()
        now = self._clock()
        if self._first is None:
            self._first = (now, done)
        line = self._line(now, done, total, failed)
        if self._live is not None:
            self._live.update(line)
        elif self._lines and (now - self._last >= self._interval or done == total):
            self._last = now
            console.print(line, markup=False)

    def _start(self) -> Console:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(file=self._stream, stderr=self._stream is None, highlight=False, soft_wrap=True)
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live("", console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        return self._console

    def _line(self, now: float, done: int, total: int, failed: int) -> str:
        assert self._first is not None
        start, before = self._first
        parts = [f"{self._noun} {done:,}/{total:,} ({100 * done // max(total, 1)}%)"]
        if failed:
            parts.append(f"{failed:,} failed")
        if done > before and now > start:
            rate = (done - before) / (now - start)
            parts += [f"{rate:,.1f} per second", f"ETA {duration((total - done) / rate)}"]
        return "  ".join(parts)
