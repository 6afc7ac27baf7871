"""What each process of a run is doing, told to the others, so that one that hangs or dies can be named.

Every process writes a line into the store that joined them, about once a second, from a thread of its own. Training
does not wait for it. When an exchange fails, those that noticed say so; the others are the ones that are missing.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from datetime import timedelta
from typing import Any

BEAT = 1.0
"""Seconds between two lines of a process."""

_PATIENCE = 2.5 * BEAT
"""Seconds that the processes which noticed a failure wait for each other."""

_heart: Heartbeat | None = None


def doing(what: str) -> None:
    """Note what this process is about to do; costs nothing where it has no others to tell."""
    if _heart is not None:
        _heart.what, _heart.since = what, time.monotonic()


class Heartbeat:
    """The lines of one process, and what it finds in those of the others.

    Args:
        store: A connection of its own to the store of the processes.
        rank: Rank of this process.
        size: Number of processes.
    """

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self.what, self.since = "starting", time.monotonic()
        self._store, self._rank, self._size = store, rank, size
        self._beats, self._ended = 0, threading.Event()
        self._store.set_timeout(timedelta(seconds=5))
        self._tell()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def start(self) -> None:
        """Start to tell what `doing` notes."""
        global _heart
        _heart = self
        self._thread.start()

    def stop(self) -> None:
        """Stop telling; the store may be gone already."""
        global _heart
        _heart = None
        self._ended.set()
        self._thread.join(2 * BEAT)

    def missing(self) -> str:
        """Return in words which processes did not notice the failure of an exchange, and what they last did.

        Returns:
            Such as ``process 1 hangs (reading the batch of step 17, for 42 s)``; empty if nothing is known.
        """
        try:
            self._store.set(f"noticed/{self._rank}", "1")
            before = self._lines()
            time.sleep(_PATIENCE)
            after = self._lines()
            silent = [rank for rank in range(self._size) if not self._store.check([f"noticed/{rank}"])]
        except RuntimeError:
            return ""
        return "; ".join(_described(rank, before.get(rank), after.get(rank)) for rank in silent)

    def _lines(self) -> dict[int, dict[str, Any]]:
        names = {rank: f"doing/{rank}" for rank in range(self._size)}
        return {rank: json.loads(self._store.get(name)) for rank, name in names.items() if self._store.check([name])}

    def _tell(self) -> None:
        line = {"what": self.what, "for": round(time.monotonic() - self.since), "beat": self._beats}
        self._store.set(f"doing/{self._rank}", json.dumps(line))
        self._beats += 1

    def _beat(self) -> None:
        with contextlib.suppress(RuntimeError):  # The store went with the process that had it.
            while not self._ended.wait(BEAT):
                self._tell()


def _described(rank: int, before: dict[str, Any] | None, after: dict[str, Any] | None) -> str:
    if after is None:
        return f"process {rank} has not said anything"
    alive = before is None or before["beat"] != after["beat"]
    return f"process {rank} {'hangs' if alive else 'died'} ({after['what']}, for {after['for']} s)"
