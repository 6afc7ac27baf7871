"""A long run of tiny steps with data workers, watched from outside: ``nox -s soak``.

    python benchmarks/soak.py --steps 20000 --plot docs/images

A run that leaks is flat at first. This one has 20,000 steps, an outer step after every third, two processes that read
data and are started anew in every epoch, an evaluation and a checkpoint in every tenth epoch. It prints memory, open
files, threads, processes, steps per second and the size of the folder over time. The exit status is 1 if memory, open
files or threads of the last quarter are above those of the second.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import fmean

from forks import Fork, preload

from meltr.report.style import panels, plotting, save

TOY = Path(__file__).parents[1] / "packages/meltr-core/tests/helpers/toy_backbone.py"
CHANGES = {
    'batches("train", 256)': 'batches("train", 4096)',
    "seed=spec.seed, **ranks)": "seed=spec.seed, workers=2, **ranks)",
}
SETTINGS = (
    "train.batch_size=8", "train.threads=1", "train.eval_every=10", "train.keep_checkpoints=2", "train.log_every=50",
    "epochs=100000", "width=16", "heads=2", "feedforward=16",
)  # fmt: skip
ALLOWED = 1.02
"""Ratio of memory between two quarters that is noise."""


@dataclass(frozen=True)
class Sample:
    """What a run uses at one moment.

    Args:
        step: Steps logged so far.
        seconds: Since its start.
        memory: Resident size of the run and its workers, MiB; pages that they share count once per process.
        own: Resident size of the run alone, MiB.
        files: Open file descriptors of the run.
        threads: Threads of the run.
        children: Processes that read data.
        folder: Size of the run folder, KiB.
    """

    step: int
    seconds: float
    memory: float
    own: float
    files: int
    threads: int
    children: int
    folder: float


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _resident(status: dict[str, str]) -> float:
    return int(status.get("VmRSS", "0").split()[0]) / 1024


def row(sample: Sample) -> str:
    """Return a row of the table."""
    step, seconds, memory, own, files, threads, children, size = astuple(sample)
    return f"{step:7} {seconds:7.0f} {memory:8.0f} {own:8.0f} {files:6} {threads:8} {children:8} {size:8.0f}"


def look(pid: int, run: Path, began: float) -> Sample | None:
    """Return what a run uses now; None while it has not logged a step, or if it or a worker has just ended."""
    try:
        lines = (run / "metrics.jsonl").read_bytes()
        step = int(lines[lines.rindex(b'"step":') + 7 :].split(b",")[0])
        own = _status(pid)
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        workers = sum(_resident(_status(int(child))) for child in children)
        files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        size = sum(path.lstat().st_size for path in run.rglob("*")) / 1024
    except (OSError, ValueError, IndexError):
        return None
    mine = _resident(own)
    return Sample(step, time.monotonic() - began, mine + workers, mine, files, int(own["Threads"]), len(children), size)


def watched(steps: int, folder: Path, interval: float) -> list[Sample]:
    """Start the run and return what it used over time; SystemExit if it fails."""
    text = TOY.read_text()
    for old, new in CHANGES.items():
        if text.count(old) != 1:
            raise SystemExit(f"{TOY} has changed: no {old!r}")
        text = text.replace(old, new)
    plugin = folder / "soaked.py"
    plugin.write_text(text)
    sets = [word for setting in (*SETTINGS, f"max_steps={steps}") for word in ("--set", setting)]
    words = ("--plugin", plugin, "--backbone", "toy", "--task", "classification", "--dataset", "rings", "--quiet")
    began, found = time.monotonic(), list[Sample]()
    process = Fork("run", *words, "--device", "cpu", *sets, "--output-dir", folder, "--name", "soak")
    while process.poll() is None:
        time.sleep(interval)
        sample = look(process.pid, folder / "soak", began)
        if sample is not None and (not found or sample.step > found[-1].step):
            found.append(sample)
            if len(found) % 20 == 1:
                print(row(sample), flush=True)
    if process.code:
        raise SystemExit(process.messages())
    return found


def verdict(samples: list[Sample], steps: int) -> list[str]:
    """Return what grew between the second and the last quarter of a run; empty if nothing did."""
    second = [each for each in samples if steps / 4 <= each.step < steps / 2]
    last = [each for each in samples if each.step >= steps * 3 / 4]
    if not second or not last:
        return ["too few samples: lower --interval"]
    grown = []
    for name in ("own", "files", "threads"):
        before, after = (fmean(getattr(each, name) for each in part) for part in (second, last))
        print(f"{name}: {before:.1f} on average in the second quarter, {after:.1f} in the last")
        if after > before * ALLOWED:
            grown.append(f"{name} grew from {before:.1f} to {after:.1f}")
    speeds = [(part[-1].step - part[0].step) / max(part[-1].seconds - part[0].seconds, 1e-9) for part in (second, last)]
    print(f"steps per second: {speeds[0]:.1f} in the second quarter, {speeds[1]:.1f} in the last (other work counts)")
    return grown


def draw(samples: list[Sample], folder: Path) -> None:
    """Draw what a run used over its steps."""
    steps = [each.step for each in samples]
    pairs = itertools.pairwise(samples)
    speed = [0.0, *((b.step - a.step) / max(b.seconds - a.seconds, 1e-9) for a, b in pairs)]
    rows = {
        "memory of the run, MiB": [each.own for each in samples],
        "memory with its workers, MiB": [each.memory for each in samples],
        "open files": [each.files for each in samples],
        "threads": [each.threads for each in samples],
        "steps per second": speed,
        "folder, KiB": [each.folder for each in samples],
    }
    with plotting():
        figure, axes = panels(len(rows))
        for axis, (title, values) in zip(axes, rows.items(), strict=True):
            axis.plot(steps[1:], values[1:])
            axis.set_title(title)
            axis.set_ylim(0, 1.15 * max(values))
            axis.set_xlabel("steps")
        save(figure, folder, name="soak", formats=("png",))


def main() -> int:
    """Run, watch, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--interval", type=float, default=5.0, help="seconds between two looks")
    parser.add_argument("--plot", type=Path, help="folder for the plot")
    asked = parser.parse_args()
    preload()
    print(f"{'step':>7} {'s':>7} {'MiB':>8} {'own MiB':>8} {'files':>6} {'threads':>8} {'workers':>8} {'KiB':>8}")
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch:
        samples = watched(asked.steps, Path(scratch), asked.interval)
    grown = verdict(samples, asked.steps)
    if asked.plot:
        draw(samples, asked.plot)
    print("; ".join(grown) or f"{asked.steps:,} steps, nothing grew")
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())
