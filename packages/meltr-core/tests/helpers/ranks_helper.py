"""Runs a function of a test file in several processes that share a run, as torchrun would start them.

The store lives in the process of the test, at a port that the system chooses. A child is started as

    python ranks_helper.py FILE FUNCTION RESULT [WORDS ...]
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed import TCPStore


@dataclass(frozen=True)
class Ended:
    """How one process ended."""

    code: int
    errors: str
    result: Any


def store() -> TCPStore:
    """Return a store for the processes of a run, or of several attempts at one."""
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def run_ranks(
    function: Callable[..., Any],
    size: int = 2,
    *,
    words: Sequence[object] = (),
    check: bool = True,
    shared: TCPStore | None = None,
    attempt: int = 0,
    delay: float = 0.0,
    timeout: float = 300.0,
    rank_timeout: float | None = None,
) -> list[Ended]:
    """Call ``function(ranks, *words)`` in `size` processes inside `meltr.parallel.ranks.joined`; return how each ended.

    Args:
        function: Of the top level of a test file; returns plain values and tensors.
        size: Number of processes.
        words: Further arguments, which the function gets as text.
        check: Fail if a process does not end with 0.
        shared: The store; None: a new one.
        attempt: How often torchrun has restarted the processes.
        delay: Seconds between the start of two processes.
        timeout: Seconds until they are killed and the test fails.
        rank_timeout: Seconds that a process waits for the others; None: as long as torch does.
    """
    shared = shared or store()
    file = str(Path(sys.modules[function.__module__].__file__).resolve())
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        children = []
        for rank in range(size):
            environment = os.environ | {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(shared.port),
                "TORCHELASTIC_USE_AGENT_STORE": "True",
                "TORCHELASTIC_RESTART_COUNT": str(attempt),
                "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
                "OMP_NUM_THREADS": "1",
                "RANK_TIMEOUT": "" if rank_timeout is None else str(rank_timeout),
            }
            command = [sys.executable, __file__, file, function.__name__, f"{folder}/{rank}.pt"]
            command += map(str, words)
            with Path(folder, f"{rank}.err").open("w") as errors:
                children.append(subprocess.Popen(command, env=environment, stdout=errors, stderr=errors))
            time.sleep(delay)
        try:
            ended = _wait(children, Path(folder), timeout)
        finally:
            for child in children:
                child.kill()
                child.wait()
    for rank, each in enumerate(ended):
        assert not check or each.code == 0, f"process {rank} ended with {each.code}:\n{each.errors[-3000:]}"
    return ended


def _wait(children: list[subprocess.Popen[bytes]], folder: Path, timeout: float) -> list[Ended]:
    end = time.monotonic() + timeout
    found = []
    for rank, child in enumerate(children):
        try:
            code = child.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            errors = "\n".join((folder / f"{r}.err").read_text()[-1500:] for r in range(len(children)))
            raise AssertionError(f"process {rank} still runs after {timeout:g} s:\n{errors}") from None
        result = folder / f"{rank}.pt"
        value = torch.load(result, weights_only=True) if result.exists() else None
        found.append(Ended(code, (folder / f"{rank}.err").read_text(), value))
    return found


def main() -> int:
    from meltr.errors import MeltrError
    from meltr.parallel.ranks import joined

    torch.set_num_threads(1)
    file, name, result, *words = sys.argv[1:]
    spec = importlib.util.spec_from_file_location("ranks_test", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        patience = os.environ.get("RANK_TIMEOUT")
        with joined("cpu", timeout=float(patience) if patience else None) as ranks:
            value = getattr(module, name)(ranks, *words)
    except MeltrError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    torch.save(value, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
