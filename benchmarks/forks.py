"""``meltr`` in forks of a process that has imported it, for harnesses that start and kill many runs.

A fork is a real process with an own id, own signals and own workers; it only does not import torch again.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import multiprocessing.util
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: a process with threads must not be forked

import torch

from meltr.cli.app import main
from meltr.plugins import discover, load_object

PATIENCE = 3600.0
"""Seconds until a process that does not end counts as hanging."""


def preload(*backbones: str) -> None:
    """Import what runs of these backbones import, so that their forks need not."""
    for module in ("meltr.engine.run", "torch.utils.data", "scipy.stats", "sklearn.datasets"):
        importlib.import_module(module)
    registry = discover()
    for name in backbones:
        load_object(registry.backbone(name).adapter)


class Fork:
    """``meltr`` with these words, in a process of its own.

    Args:
        words: As on the command line.
    """

    def __init__(self, *words: object) -> None:
        self._errors = Path(tempfile.mkstemp(prefix="fork-", suffix=".txt")[1])
        self._code: int | None = None
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _be(self._errors, ["meltr", *map(str, words)])

    @property
    def code(self) -> int:
        """Exit code; minus the number of the signal that ended it; -999: it has not ended."""
        return -999 if self._code is None else self._code

    def poll(self) -> int | None:
        """Return the exit code, None while it works."""
        if self._code is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def wait(self, seconds: float) -> None:
        """Wait until it has ended; TimeoutError after this many seconds."""
        until = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > until:
                raise TimeoutError(f"process {self.pid} still works after {seconds:.0f} s")
            time.sleep(0.01)

    def send_signal(self, number: int) -> None:
        """Send a signal if it still works."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once, as ``kill -9`` does, and wait for that."""
        self.send_signal(signal.SIGKILL)
        self.wait(PATIENCE)

    def messages(self) -> str:
        """Return what it wrote to standard error, and forget it."""
        text = self._errors.read_text(encoding="utf-8", errors="replace") if self._errors.exists() else ""
        self._errors.unlink(missing_ok=True)
        return text


def _be(errors: Path, words: list[str]) -> None:
    """Be ``meltr`` until the end of this process."""
    code = 1
    atexit._clear()  # what the harness wants done at its own end, such as removing its folder
    try:
        for target, path in ((1, Path(os.devnull)), (2, errors)):
            os.dup2(os.open(path, os.O_WRONLY), target)
        sys.argv = words
        sys.modules["matplotlib"] = None  # type: ignore[assignment]  # a run without plots is several times cheaper
        torch.set_num_threads(1)
        for number in (signal.SIGHUP, signal.SIGINT):  # nohup and a shell's & have them ignored, and so would a run
            signal.signal(number, signal.SIG_DFL if number == signal.SIGHUP else signal.default_int_handler)
        main()
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(BaseException):
            multiprocessing.util._exit_function()
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
