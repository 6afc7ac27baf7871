"""Does the runs of a sweep that are missing: one after the other in this process, or several at once."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

from meltr.cli._jobs import Job, Manner, performed
from meltr.cli.output import remark
from meltr.errors import MeltrError, StoppedRun
from meltr.folders.claims import Claim
from meltr.folders.locks import LockedError
from meltr.plugins import Registry
from meltr.sweeps.pieces import Piece

_PAUSE = 0.2
_IN_USE = "is in use by"


@dataclass
class Outcome:
    """What became of the runs of a sweep.

    Args:
        done: Runs that were done before.
        ran: Runs that this command finished.
        failed: Runs that ended with an error, and the error.
        busy: Runs that another process does.
    """

    done: list[Piece] = field(default_factory=list)
    ran: list[Piece] = field(default_factory=list)
    failed: list[tuple[Piece, str]] = field(default_factory=list)
    busy: list[Piece] = field(default_factory=list)


def work(registry: Registry, pieces: Sequence[Piece], *, jobs: int = 1) -> Outcome:
    """Do every run that is not done; a run that was begun goes on where it stopped.

    Args:
        registry: The plugins found.
        pieces: The runs.
        jobs: Runs at once. 1: in this process, which loads torch once; more: each in a process of its own.

    Raises:
        UserError: If a folder holds another run; nothing is run then.
        StoppedRun: If a signal ended it; the runs under way have saved a checkpoint.
    """
    states = {piece.folder: piece.state() for piece in pieces}
    outcome = Outcome(done=[piece for piece in pieces if states[piece.folder] == "done"])
    waiting = [(piece, states[piece.folder] == "begun") for piece in pieces if states[piece.folder] != "done"]
    if outcome.done:
        remark(f"{len(outcome.done)} of {len(pieces)} runs are there already")
    if jobs == 1:
        for number, (piece, begun) in enumerate(waiting, start=1):
            remark(f"[{number} of {len(waiting)}] {piece.name}" + (", continued" if begun else ""))
            _here(registry, piece, outcome, begun=begun)
    else:
        _Processes(jobs, outcome).work(waiting)
    return outcome


def _here(registry: Registry, piece: Piece, outcome: Outcome, *, begun: bool) -> None:
    from meltr.engine.stop_requests import StopRequests

    job = Job(registry, piece.spec, piece.folder, None, resume=begun)
    claim = Claim(piece.folder, resume=begun, named=True, overwrite=False, say=remark)
    try:
        with StopRequests(several=False).listening(None) as stop:
            performed(job, claim, Manner(quiet=True, stop=stop, plots=not piece.spec.sample), None)
    except LockedError as error:
        remark(f"  {error.message}")
        outcome.busy.append(piece)
    except MeltrError as error:
        remark(f"  error: {error}")
        outcome.failed.append((piece, error.message))
    except Exception as error:
        traceback.print_exc()  # a bug in a plugin; the other runs may be without
        outcome.failed.append((piece, f"{type(error).__name__}: {error}"))
    else:
        outcome.ran.append(piece)


class _Processes:
    """Runs in processes of their own; what each prints is in ``seed-N.log`` beside its folder.

    Args:
        jobs: Most runs at once.
        outcome: Where their ends are noted.
    """

    def __init__(self, jobs: int, outcome: Outcome) -> None:
        self._jobs, self._outcome = jobs, outcome
        self._going: dict[subprocess.Popen[bytes], tuple[Piece, IO[bytes]]] = {}

    def work(self, waiting: Sequence[tuple[Piece, bool]]) -> None:
        """Do the runs, each with whether it was begun before."""
        queue, total = list(waiting), len(waiting)
        with _signals() as asked:
            try:
                while queue or self._going:
                    if asked:
                        raise asked[0]
                    while queue and len(self._going) < self._jobs:
                        piece, begun = queue.pop(0)
                        number = total - len(queue)
                        remark(f"[{number} of {total}] {piece.name}" + (", continued" if begun else ""))
                        self._start(piece, begun=begun)
                    self._collect()
                    time.sleep(_PAUSE)
            except BaseException:
                self._stop()
                raise

    def _start(self, piece: Piece, *, begun: bool) -> None:
        log = log_of(piece)
        log.parent.mkdir(parents=True, exist_ok=True)
        threads = str(max(1, (os.cpu_count() or 1) // self._jobs))
        environment = {"OMP_NUM_THREADS": threads, **os.environ}
        words = [sys.executable, "-m", "meltr", *piece.words(begun=begun), "--quiet"]
        stream = log.open("ab")
        # A session of its own: Ctrl-C reaches this process alone, which then asks each run to stop once.
        process = subprocess.Popen(  # noqa: S603 - its own command line
            words, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=environment, start_new_session=True
        )
        self._going[process] = (piece, stream)

    def _collect(self) -> None:
        for process in [each for each in self._going if each.poll() is not None]:
            piece, stream = self._going.pop(process)
            stream.close()
            if process.returncode == 0:
                self._outcome.ran.append(piece)
                continue
            cause = last_error(log_of(piece)) or f"exit code {process.returncode}"
            if _IN_USE in cause:
                self._outcome.busy.append(piece)
            else:
                self._outcome.failed.append((piece, cause))
            remark(f"  {piece.name}: {cause} ({log_of(piece)})")

    def _stop(self) -> None:
        for process in self._going:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        for process, (piece, stream) in self._going.items():
            process.wait()
            stream.close()
            remark(f"  {piece.name}: stopped")


def log_of(piece: Piece) -> Path:
    """Return the file with what a run in a process of its own printed."""
    return piece.folder.with_name(f"{piece.folder.name}.log")


def last_error(log: Path) -> str | None:
    """Return the last line that says ``error:`` in a log; None if there is none."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((line.partition("error: ")[2] for line in reversed(lines) if line.startswith("error: ")), None)


@contextlib.contextmanager
def _signals() -> Iterator[list[StoppedRun]]:
    """Collect SIGINT, SIGTERM and SIGHUP, so that none comes between the start of a process and its note."""
    asked: list[StoppedRun] = []

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(StoppedRun(signal.Signals(number).name, 128 + number))

    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    earlier = {name: signal.signal(getattr(signal, name), note) for name in names}
    try:
        yield asked
    finally:
        for name, handler in earlier.items():
            signal.signal(getattr(signal, name), handler)
