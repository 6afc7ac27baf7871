"""Starts real runs, breaks them in every way that we know of, and counts what came of it.

    python benchmarks/faults.py --kills 50

A run that was killed, stopped or damaged is resumed, and has to end with the weights, the lines and the results of a
run that nobody touched, bit for bit. Prints a table; the exit code is 1 if anything differed.

Every run is a process of its own: a fork of this one, which has imported torch and meltr and done nothing else. So a
start costs a fraction of a second.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forks import PATIENCE, Fork, preload

SHORT = (
    "--device", "cpu", "--set", "width=16", "--set", "heads=2", "--set", "feedforward=16", "--set", "threads=1",
    "--set", "max_steps=14", "--set", "epochs=2", "--set", "log_every=3", "--set", "checkpoint_every=4",
    "--set", "keep_checkpoints=9", "--set", "train_limit=224", "--set", "eval_limit=64", "--quiet",
)  # fmt: skip
CASES = {
    "vision": ("--backbone", "vision", "--task", "classification", "--dataset", "digits", "--batch-size", "16"),
    "violet": (
        "--backbone", "violet", "--task", "qa", "--dataset", "msvd", "--sample", "--batch-size", "16",
        "--set", "workers=1",
    ),
}  # fmt: skip
SIGNALS = {signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGUSR1: 138, signal.SIGINT: 130}
INFINITE = """
import meltr
from meltr.bilevel.bilevel import Bilevel


@meltr.hookimpl
def on_run_start():
    original = Bilevel.backward

    def backward(self, *arguments, **named):
        result = original(self, *arguments, **named)
        if self.steps == 8:
            next(p for p in self.parameters if p.grad is not None).grad.view(-1)[0] = float("inf")
        return result

    Bilevel.backward = backward
"""
HARMLESS = """
import meltr


@meltr.hookimpl
def on_run_start():
    pass
"""


@dataclass
class Bench:
    """The runs of one backbone.

    Args:
        name: Of the case.
        folder: Where they are written.
    """

    name: str
    folder: Path
    counts: Counter[tuple[str, bool]] = field(default_factory=Counter)
    seconds: float = 0.0

    def start(self, *words: object) -> Fork:
        """Start ``meltr run`` with these words."""
        return Fork("run", *words)

    def new(self, name: str, *words: object) -> Fork:
        """Start a new run."""
        return self.start(*CASES[self.name], *SHORT, "--output-dir", self.folder, "--name", name, *words)

    def resume(self, name: str) -> tuple[int, str]:
        """Resume a run to its end; return exit code and messages."""
        return ended(self.start("--resume", self.folder / name, "--quiet"))

    def said(self, fault: str, right: bool, details: str = "") -> None:
        """Count an attempt."""
        self.counts[fault, right] += 1
        print(f"{self.name}: {fault}: {'as it should be' if right else 'WRONG'} {'' if right else details}", flush=True)

    def same(self, name: str) -> str:
        """Return in what a run differs from the one that nobody touched; empty if in nothing."""
        one, other = self.folder / "whole", self.folder / name
        for file in ("backbone.safetensors", "combiner.safetensors"):
            if _last(one, file) != _last(other, file):
                return f"other bytes in {file}"
        if _lines(one) != _lines(other):
            return "other lines in metrics.jsonl"
        results = [json.loads((each / "results.json").read_text()) for each in (one, other)]
        return "" if all(results[0][key] == results[1][key] for key in ("test", "validation")) else "other results"

    def resumed_is_same(self, fault: str, name: str, *, fine: bool = True, details: str = "", word: str = "") -> None:
        """Resume a run, compare it, and count; `word` has to be in what the resumed run says."""
        code, messages = self.resume(name)
        difference = self.same(name) if code == 0 else f"exit code {code}"
        right = fine and not difference and word in messages
        self.said(fault, right, f"{details} {difference} {messages[-800:]}")
        shutil.rmtree(self.folder / name)


def ended(process: Fork) -> tuple[int, str]:
    """Wait for a process; return exit code and messages."""
    process.wait(PATIENCE)
    return process.code, process.messages()


def _last(run: Path, file: str) -> bytes:
    return (run / "checkpoints" / "last" / file).read_bytes()


def _lines(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in row if key not in ("examples_per_second", "memory_mb")} for row in rows]


def wait_for(run: Path, process: Fork, pattern: str) -> None:
    """Wait until a run has a file, or has ended."""
    while process.poll() is None and not any(run.glob(pattern)):
        time.sleep(0.01)


def kills(bench: Bench, number: int, rng: random.Random) -> None:
    """Kill runs at random moments, again and again until they end, as often as asked in all."""
    done, run = 0, 0
    while done < number:
        run += 1
        name, process = f"killed-{run}", bench.new(f"killed-{run}")
        while done < number:
            with contextlib.suppress(TimeoutError):
                process.wait(rng.uniform(0.25, 1.0) * bench.seconds)
            if process.poll() is not None:
                break
            process.kill()
            done += 1
            begun = (bench.folder / name / "run.yaml").exists()
            process = bench.start("--resume", bench.folder / name, "--quiet") if begun else bench.new(name)
        ended(process)
        difference = bench.same(name) if process.code == 0 else f"exit code {process.code}"
        bench.said("runs after kill -9", not difference, difference)
        shutil.rmtree(bench.folder / name)
    bench.counts["kill -9", True] += done


def signals(bench: Bench) -> None:
    """Ask runs to stop after their first checkpoint; one that ends before it is asked is done again, a few times."""
    for number, expected in SIGNALS.items():
        code, messages, attempts = 0, "", 0
        while code == 0 and attempts < 5:
            attempts += 1
            shutil.rmtree(bench.folder / "stopped", ignore_errors=True)
            process = bench.new("stopped")
            wait_for(bench.folder / "stopped", process, "checkpoints/last")
            process.send_signal(number)
            code, messages = ended(process)
        fine = code == expected and "continue with: meltr run --resume" in messages and "Traceback" not in messages
        bench.resumed_is_same(number.name, "stopped", fine=fine, details=f"{code} {messages[-500:]}")
    process = bench.new("stopped", "--max-time", f"{0.7 * bench.seconds:.1f}")
    code, messages = ended(process)
    fine = code == 0 or (code == 124 and "continue with: meltr run --resume" in messages)
    bench.resumed_is_same("--max-time", "stopped", fine=fine, details=f"{code} {messages[-500:]}")


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a flipped byte": lambda last: _flip(last / "backbone.safetensors"),
    "a file of another step": lambda last: shutil.copy(last.with_name("step-000004") / "training.pt", last),
    "a truncated file": lambda last: os.truncate(last / "training.pt", 1000),
    "a zeroed file": lambda last: (last / "combiner.safetensors").write_bytes(bytes(2000)),
    "a deleted file": lambda last: (last / "backbone.safetensors").unlink(),
    "a deleted manifest": lambda last: (last / "manifest.json").unlink(),
    "a deleted checkpoint": lambda last: shutil.rmtree(last),
    "a deleted last": lambda last: (last.parent / "last").unlink(),
}


def damages(bench: Bench) -> None:
    """Damage the last checkpoint of an interrupted run in every way."""
    process = bench.new("cut")
    wait_for(bench.folder / "cut", process, "checkpoints/step-000008")
    process.send_signal(signal.SIGTERM)
    ended(process)
    for fault, damage in DAMAGES.items():
        shutil.copytree(bench.folder / "cut", bench.folder / "damaged", symlinks=True)
        damage((bench.folder / "damaged" / "checkpoints" / "last").resolve())
        bench.resumed_is_same(fault, "damaged", word="continuing from step")
    best = bench.folder / "cut" / "checkpoints" / "best"
    best.unlink(missing_ok=True)
    best.symlink_to("best")
    code, messages = ended(Fork("evaluate", best.parents[1]))
    bench.said("best leads to itself", code == 2 and "leads to itself" in messages, messages[-500:])
    shutil.rmtree(bench.folder / "cut")


def folders(bench: Bench) -> None:
    """Two runs at once, a second process in a run, and an overwrite that is killed."""
    own = bench.folder / "twins"
    twins = [bench.start(*CASES[bench.name], *SHORT, "--output-dir", own) for _ in range(2)]
    codes = [ended(each)[0] for each in twins]
    found = sorted(own.iterdir())
    bench.said("two runs at once", codes == [0, 0] and all((each / "results.json").exists() for each in found[:2]))
    process = bench.new("used")
    wait_for(bench.folder / "used", process, "checkpoints/last")
    code, messages = bench.resume("used")
    ended(process)
    fine = code == 2 and f"in use by process {process.pid}" in messages and not bench.same("used")
    bench.said("a second --resume", fine, messages[-500:])
    before = (bench.folder / "used" / "results.json").read_text()
    process = bench.new("used", "--overwrite")
    wait_for(bench.folder / "used", process, "run.lock")
    process.kill()
    code, messages = ended(bench.new("used"))
    aside = bench.folder / ".used.replaced"
    kept = aside if aside.exists() else bench.folder / "used"
    bench.said("a killed --overwrite", (kept / "results.json").read_text() == before, messages[-500:])
    shutil.rmtree(own)


def infinity(bench: Bench) -> None:
    """An infinite gradient in the step before a checkpoint."""
    plugin = bench.folder / "infinite.py"
    plugin.write_text(INFINITE)
    code, messages = ended(bench.new("infinite", "--plugin", plugin))
    fine = code == 1 and "is not finite at step 7" in messages and "step-000004" in messages
    plugin.write_text(HARMLESS)
    bench.resumed_is_same("an infinite gradient", "infinite", fine=fine, details=f"{code} {messages[-500:]}")


def workers(bench: Bench) -> None:
    """Kill a process that reads data."""
    process = bench.new("workerless")
    wait_for(bench.folder / "workerless", process, "checkpoints/last")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    for pid in children.read_text().split() if children.exists() else ():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    code, messages = ended(process)
    # A worker that had read everything may be gone unnoticed.
    fine = "Traceback" not in messages and (code == 0 or "A process that reads data died" in messages)
    bench.resumed_is_same("a killed data worker", "workerless", fine=fine, details=f"{code} {messages[-800:]}")


def main() -> int:
    """Break the runs of each case and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="kill -9 at random moments, over all cases")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    wrong, rows = 0, []
    preload(*chosen.cases)
    for place, name in enumerate(chosen.cases):
        with tempfile.TemporaryDirectory(prefix="faults-") as folder:
            bench = Bench(name, Path(folder))
            begun = time.monotonic()
            code, messages = ended(bench.new("whole"))
            bench.seconds = time.monotonic() - begun
            if code:
                print(messages)
                return 1
            for attempt in (signals, damages, folders, infinity, *((workers,) if "workers=1" in CASES[name] else ())):
                attempt(bench)
            share = chosen.kills // len(chosen.cases) + (place < chosen.kills % len(chosen.cases))
            kills(bench, share, random.Random(chosen.seed + place))
        faults = dict.fromkeys(fault for fault, _ in bench.counts)
        rows += [(name, fault, bench.counts[fault, True], bench.counts[fault, False]) for fault in faults]
        wrong += sum(row[3] for row in rows if row[0] == name)
    print(f"\n{'case':8} {'fault':24} {'right':>6} {'wrong':>6}")
    for case, fault, right, bad in rows:
        print(f"{case:8} {fault:24} {right:6} {bad:6}")
    print(f"{sum(row[2] for row in rows)} right, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
