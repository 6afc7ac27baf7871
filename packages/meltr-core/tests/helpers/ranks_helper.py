"""Runs a function of a test file in several processes that share a run, as torchrun would start them.

The store lives in the process of the test, at a port that the system chooses. The processes are forks of one that has
imported torch and meltr and done nothing else: so a start takes a fraction of a second.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch.distributed import TCPStore

from meltr.testing.processes import PRELOADED

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(list(PRELOADED))


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
    join: bool = True,
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
        join: False: the function itself joins the processes, and gets None for `ranks`.
        delay: Seconds between the start of two processes.
        timeout: Seconds until they are killed and the test fails.
        rank_timeout: Seconds that a process waits for the others; None: as long as torch does.
    """
    shared = shared or store()
    file = str(Path(sys.modules[function.__module__].__file__).resolve())
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        children: list[BaseProcess] = []
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
            call = (environment, join, file, function.__name__, f"{folder}/{rank}", [str(word) for word in words])
            children.append(_FORKS.Process(target=_in_a_process, args=call))
            children[-1].start()
            time.sleep(delay)
        try:
            ended = _wait(children, Path(folder), timeout)
        finally:
            for child in children:
                child.kill()
                child.join()
    for rank, each in enumerate(ended):
        assert not check or each.code == 0, f"process {rank} ended with {each.code}:\n{each.errors[-3000:]}"
    return ended


def _wait(children: list[BaseProcess], folder: Path, timeout: float) -> list[Ended]:
    end = time.monotonic() + timeout
    found = []
    for rank, child in enumerate(children):
        child.join(max(0.1, end - time.monotonic()))
        if child.exitcode is None:
            errors = "\n".join((folder / f"{r}.err").read_text()[-1500:] for r in range(len(children)))
            raise AssertionError(f"process {rank} still runs after {timeout:g} s:\n{errors}")
        result = folder / f"{rank}.pt"
        value = torch.load(result, weights_only=True) if result.exists() else None
        found.append(Ended(child.exitcode, (folder / f"{rank}.err").read_text(), value))
    return found


def _in_a_process(
    environment: Mapping[str, str], join: bool, file: str, name: str, result: str, words: Sequence[str]
) -> None:
    """Call a function with the ranks that `environment` tells; write what it returns beside what it prints."""
    from meltr.errors import MeltrError
    from meltr.parallel.ranks import joined

    with Path(f"{result}.err").open("w") as errors:
        os.dup2(errors.fileno(), 1)
        os.dup2(errors.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    spec = importlib.util.spec_from_file_location("ranks_test", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        patience = os.environ.get("RANK_TIMEOUT")
        with joined("cpu", timeout=float(patience) if patience else None) if join else nullcontext() as ranks:
            value = getattr(module, name)(ranks, *words)
    except MeltrError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    torch.save(value, f"{result}.pt")
