"""Requests to stop a run: signals and a limit of time. Imports no torch.

The first request lets the step end and a checkpoint be written; a second signal ends the process at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from meltr.errors import StoppedRun, UserError

TIME_IS_UP = 124
"""Exit code of a run that its limit of time ended; that of timeout(1)."""

_ECHO = 2.0
"""Seconds in which a second signal counts as the first: torchrun passes on what its processes have already got."""


class StopRequests:
    """What asked a run to stop, if anything did.

    Args:
        several: Whether other processes share the run; signals may then come twice.
    """

    def __init__(self, *, several: bool = False) -> None:
        self.code = 0
        self._several = several
        self._words: dict[int, str] = {}
        self._deferred = False
        self._since = 0.0

    @contextlib.contextmanager
    def listening(self, max_seconds: float | None = None) -> Iterator[StopRequests]:
        """Answer SIGINT, SIGTERM, SIGHUP and SIGUSR1, and the limit of time, inside this context.

        Args:
            max_seconds: The limit, from now on; None: none.

        Raises:
            UserError: If there is a limit, and the system has no timer that interrupts (Windows).
        """
        if max_seconds is not None and not hasattr(signal, "SIGALRM"):
            raise UserError("--max-time needs a timer that this system does not have.", "Run without --max-time.")
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._on_signal) for number in _signals()}
        if max_seconds is not None:
            self._words[TIME_IS_UP] = f"--max-time {max_seconds:g} s"
            before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._on_alarm)
            signal.setitimer(signal.ITIMER_REAL, max(max_seconds, 1e-3))
        try:
            yield self
        finally:
            if max_seconds is not None:
                signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def after_the_step(self) -> Iterator[None]:
        """Only note requests inside this context; the caller asks for them."""
        before, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = before

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Answer requests inside this context by `StoppedRun`, those that came before too."""
        before, self._deferred = self._deferred, False
        try:
            if self.code:
                raise self.stopped()
            yield
        finally:
            self._deferred = before

    def stopped(self, code: int | None = None, state: str = "") -> StoppedRun:
        """Return the exception that ends the run.

        Args:
            code: The exit code that all processes agreed on; None: that of this process.
            state: Where the run stands.
        """
        code = self.code if code is None else code
        return StoppedRun(self._words.get(code) or _name(code), code, state)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.code and self.code != TIME_IS_UP:
            if not (self._several and now - self._since < _ECHO):
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        self._since = now
        self._asked(128 + number)
        if not self._several:
            for each in _signals():  # The next one ends the process even while it is in native code.
                signal.signal(each, signal.SIG_DFL)

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        if not self.code:
            self._asked(TIME_IS_UP)

    def _asked(self, code: int) -> None:
        self.code = code
        if not self._deferred:
            raise self.stopped()


def _signals() -> tuple[signal.Signals, ...]:
    """Return the signals that ask a run to stop, without those that this process was started to ignore (nohup)."""
    known = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]
    return tuple(each for each in known if signal.getsignal(each) is not signal.SIG_IGN)


def _name(code: int) -> str:
    if code == TIME_IS_UP:
        return "--max-time"
    name = signal.Signals(code - 128).name
    return "Ctrl-C" if name == "SIGINT" else name
