"""CIFAR-100 as others publish it: one resumable script with a time budget.

    python benchmarks/cifar100.py --data-root DIR --out runs/cifar100 --protocol mls-bench --budget 15m

Protocols:

- ``mls-bench``: MLS-Bench, 100 classes with the superclasses as helper; ResNet-20, ResNet-56 and VGG-16; 200 epochs.
- ``superclasses``: the 20 superclasses with the 100 classes as helper, VGG-16.
- ``paper``: Table 12 of the MELTR paper: ResNet-32 with mixup and rotation.

Runs are made one after another. What the budget does not allow is left for the next call with the same words: runs
that are complete are kept, and one that was interrupted goes on from its checkpoint. Each run is shown with two test
accuracies: that of the checkpoint that validation chose, and the best of the last checkpoints, as most published
tables have it. ``--epochs`` and ``--train-limit`` make a smaller run, which compares with no published number; give it
a folder of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from meltr.cli._times import seconds_of

COMBINERS = ("primary", "sum", "dwa", "uncertainty", "pcgrad", "meltr", "meltr-shares")
LAST = 10
"""Checkpoints at the end of a run whose best test accuracy is shown."""


@dataclass(frozen=True)
class Protocol:
    """How a published table was made.

    Args:
        models: Its networks.
        settings: Settings of the runs.
        published: Network -> what is known, in per cent.
    """

    models: tuple[str, ...]
    settings: tuple[str, ...]
    published: dict[str, str]


PROTOCOLS = {
    "mls-bench": Protocol(
        ("resnet20", "resnet56", "vgg16_bn"),
        ("losses=classification,coarse",),
        {
            "resnet20": "dwa 67.81, uncertainty 66.81, pcgrad 64.53",
            "resnet56": "dwa 71.97, uncertainty 70.99, pcgrad 70.27",
            "vgg16_bn": "dwa 73.90, uncertainty 72.56, pcgrad 74.26",
        },
    ),
    "superclasses": Protocol(
        ("vgg16_bn",),
        ("losses=classification,fine", "options.classes=coarse"),
        {"vgg16_bn": "sum with fine labels about 75.5, MAXL 77.4, WAMAL 80.2, RL-AUX 80.9"},
    ),
    "paper": Protocol(("resnet32",), (), {"resnet32": "primary 66.5, meltr 69.2"}),
}


def main(words: Sequence[str] | None = None) -> int:
    """Make the runs that are missing, as far as the budget goes, and print the table."""
    args = _arguments(words)
    end = time.monotonic() + (seconds_of(args.budget) or 0)
    protocol = PROTOCOLS[args.protocol]
    jobs = [
        (model, combiner, seed)
        for seed in args.seeds
        for model in args.models or protocol.models
        for combiner in args.combiners
    ]
    left = [job for job in jobs if not _complete(_folder(args, *job))]
    for job in list(left):
        if time.monotonic() >= end or not _run(args, protocol, *job, end=end):
            break
        left.remove(job)
    _show(args, protocol, jobs)
    if left:
        print(f"left: {len(left)} of {len(jobs)} runs, next {' '.join(map(str, left[0]))}; call again to go on")
    return 0


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True, help="folder with cifar-100-python/")
    parser.add_argument("--out", type=Path, default=Path("runs/cifar100"))
    parser.add_argument("--protocol", choices=PROTOCOLS, default="mls-bench")
    parser.add_argument(
        "--budget", default="15m", help="no run is begun, and the last is stopped, after it: 900, 15m, 2h"
    )
    parser.add_argument("--models", nargs="*", help="default: those of the protocol")
    parser.add_argument("--combiners", nargs="*", default=COMBINERS, choices=COMBINERS)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, help="instead of 200: a part of the protocol")
    parser.add_argument("--train-limit", type=int, help="training images: a part of the protocol")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="of meltr run, e.g. precision=bf16"
    )
    return parser.parse_args(words)


def _folder(args: argparse.Namespace, model: str, combiner: str, seed: int) -> Path:
    return Path(args.out) / f"{args.protocol}-{model}-{combiner}-{seed}"


def _complete(folder: Path) -> bool:
    return (folder / "results.json").is_file()


def _run(args: argparse.Namespace, protocol: Protocol, model: str, combiner: str, seed: int, *, end: float) -> bool:
    """Make or continue a run; return whether it is complete.

    Raises:
        SystemExit: If the run failed for another reason than the time.
    """
    folder, limit = _folder(args, model, combiner, seed), f"{max(1, round(end - time.monotonic()))}"
    if (folder / "run.yaml").is_file():
        words = ["run", "--resume", str(folder), "--max-time", limit, "--quiet"]
    else:
        settings = [*protocol.settings, f"options.model={model}", f"train.keep_checkpoints={LAST}", *args.set]
        if combiner == "pcgrad":
            settings.append("method=PCGrad")
        settings += [] if args.train_limit is None else [f"data.train_limit={args.train_limit}"]
        words = ["run", "--backbone", "vision", "--task", "classification", "--dataset", "cifar100"]
        words += ["--preset", "mls-bench", "--combiner", "torchjd" if combiner == "pcgrad" else combiner]
        words += ["--data-root", args.data_root, "--output-dir", str(args.out), "--name", folder.name]
        words += ["--seed", str(seed), "--max-time", limit, "--quiet"]
        words += [word for each in settings for word in ("--set", each)]
        words += [] if args.epochs is None else ["--epochs", str(args.epochs), "--set", "train.eval_every=1"]
    begun = time.monotonic()
    code = _meltr(words).returncode
    print(f"{folder.name}: {'complete' if code == 0 else f'exit {code}'}, {time.monotonic() - begun:.0f} s", flush=True)
    if code not in (0, 124):
        raise SystemExit(code)
    return code == 0


def _meltr(words: Sequence[str], *, capture: bool = False) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "meltr", *words], text=True, check=False, capture_output=capture)


def _scores(folder: Path) -> tuple[float, float]:
    """Return the test accuracy of the checkpoint that validation chose, and the best of the last checkpoints."""
    chosen = float(json.loads((folder / "results.json").read_text())["test"]["metrics"]["top1"])
    kept = folder / "best-test.json"
    if not kept.is_file():
        found = [chosen]
        for place in sorted((folder / "checkpoints").glob("step-*")):
            answer = _meltr(["evaluate", str(folder), "--checkpoint", place.name, "--json"], capture=True)
            if answer.returncode == 0:
                found.append(float(json.loads(answer.stdout)["metrics"]["top1"]))
        kept.write_text(json.dumps({"top1": max(found), "checkpoints": len(found)}) + "\n")
    return chosen, float(json.loads(kept.read_text())["top1"])


def _show(args: argparse.Namespace, protocol: Protocol, jobs: Sequence[tuple[str, str, int]]) -> None:
    print(f"\n{'network':10s} {'combiner':14s} {'seeds':>5s} {'chosen on validation':>22s} {'best on test':>16s}")
    for model, combiner in dict.fromkeys(job[:2] for job in jobs):
        folders = [_folder(args, model, combiner, seed) for seed in args.seeds]
        found = [_scores(folder) for folder in folders if _complete(folder)]
        if found:
            chosen, best = (_spread([each[place] for each in found]) for place in range(2))
            print(f"{model:10s} {combiner:14s} {len(found):5d} {chosen:>22s} {best:>16s}")
    for model in args.models or protocol.models:
        print(f"published for {model}: {protocol.published.get(model, 'nothing')}")


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


if __name__ == "__main__":
    sys.exit(main())
