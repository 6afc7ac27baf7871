"""What ``--deterministic`` costs: both ways take turns inside one run, three steps each (one outer step).

    python benchmarks/deterministic.py
    python benchmarks/deterministic.py --cases vision --device cuda --steps 600

Prints the median time of three steps both ways, and the median of the ratios of neighbours. On the CPU it is processor
time, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import os
import time
from statistics import median
from typing import Any

os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # before CUDA starts

import torch
from repeat import TINY

import meltr
from meltr.engine.run import execute
from meltr.plugins import discover
from meltr.settings import resolve

TURN = 3
"""Steps until it is the other way's turn; K of the runs."""


class Turns:
    """An observer that measures the steps of both ways by turns.

    Args:
        device: Where the run is.
    """

    def __init__(self, device: str) -> None:
        self._cuda = device.startswith("cuda")
        self.times: dict[bool, list[float]] = {False: [], True: []}
        self._began = 0.0

    def _now(self) -> float:
        if not self._cuda:
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    @meltr.hookimpl
    def on_step_end(self, record: meltr.StepRecord) -> None:
        """At the end of a turn, note its time and switch; the first two turns warm up."""
        if record.step % TURN:
            return
        now, way = self._now(), torch.are_deterministic_algorithms_enabled()
        if record.step > 2 * TURN:
            self.times[way].append(now - self._began)
        torch.use_deterministic_algorithms(not way)
        self._began = self._now()


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["vision", "violet", "univl"], choices=list(TINY))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=126)
    given = parser.parse_args()
    registry = discover()
    print("| backbone | plain | deterministic | ratio | turns |\n| --- | --- | --- | --- | --- |")
    for case in given.cases:
        words = [word for word in TINY[case] if word != "--sample"]
        choice: dict[str, Any] = {words[i].strip("-"): words[i + 1] for i in range(0, len(words), 2)}
        flags = {"train.epochs": 10**6, "train.max_steps": given.steps, "train.log_every": 1, "train.threads": 1}
        flags |= {"train.eval_every": 10**6, "bilevel.every": TURN, "device": given.device}
        flags |= {"sample": "--sample" in TINY[case]}
        turns = Turns(given.device)
        execute(resolve(registry, **choice, flags=flags), run_dir=None, registry=registry, observers=[turns])
        plain, same = turns.times[False], turns.times[True]
        ratio = median(b / a for a, b in zip(plain, same, strict=False))
        print(f"| {case} | {median(plain):.4f} s | {median(same):.4f} s | {ratio:.3f} | {len(same)} |", flush=True)


if __name__ == "__main__":
    main()
