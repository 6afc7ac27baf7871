"""What bounds a step of each backbone at its published size: its files, the host, or the arithmetic.

    python benchmarks/bounds.py --videos FOLDER --out bounds.json
    python benchmarks/bounds.py --show bounds.json --markdown 'docs/efficiency.md#steps'

Every backbone trains for a few steps with ``meltr run`` (MELTR, exact g, K = 3), on pictures, clips and texts read from
files. One process reads and computes in turn, and nothing read is kept, so that the run's own account (``time`` of
``results.json``) gives the price of reading. Then the kernels and operations of a cycle are counted. Both do not depend
on the machine; with the speed of a card (``--tflops``, ``--launch-us``) they tell where its host, its arithmetic or its
files would be the limit. Weights are random: nothing but prices is looked at.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from meltr.autograd.flops import FlopCounter
from meltr.bench.markdown import update
from meltr.files import write_json
from meltr.folders.run_folder import RunFolder
from meltr.plugins import Registry, discover
from meltr.torch_private import DispatchMode
from meltr.verify.fixed_run import FixedRun, Stepper

ITEMS = {"train": 40, "validation": 4, "test": 4}
WORDS = ("a", "man", "cuts", "an", "onion", "while", "two", "dogs", "run", "over", "the", "green", "beach")
HOST_ONLY = ("is_same_size", "_has_same_storage_numel", "_local_scalar_dense", "_unsafe_view", "detach", "dot")
"""Operations that launch nothing on a GPU, beside views; products of vectors are many on the CPU and joined there."""


@dataclass(frozen=True)
class Subject:
    """A backbone at a size.

    Args:
        name: Shown in the table.
        words: Arguments of ``meltr run``.
        reads: What an item is read from.
        model: Writes a model's folder for ``--set model=``; None: the backbone has its own.
    """

    name: str
    words: tuple[str, ...]
    reads: str
    model: Callable[[Path], object] | None = field(default=None)


def words(backbone: str, task: str, dataset: str, batch: int, *settings: str) -> tuple[str, ...]:
    """Return the arguments of a run of a backbone's own size."""
    chosen = ("--backbone", backbone, "--task", task, "--dataset", dataset, "--preset", "none")
    return (*chosen, "--batch-size", str(batch), *(part for each in settings for part in ("--set", each)))


def bert(folder: Path) -> None:
    """Write a BERT of base size."""
    from transformers import BertConfig, BertForMaskedLM

    from meltr_hf.model.tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer(WORDS, "encoder")
    BertForMaskedLM(BertConfig()).save_pretrained(folder)  # its vocabulary is larger than the tokenizer's
    tokenizer.save_pretrained(folder)


def clip(folder: Path) -> None:
    """Write a CLIP ViT-B/32."""
    from transformers import BertTokenizerFast, CLIPConfig, CLIPImageProcessor, CLIPModel

    marks = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    CLIPModel(CLIPConfig()).save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)
    BertTokenizerFast(vocab={word: at for at, word in enumerate((*marks, *WORDS))}).save_pretrained(folder)


FRESH = "memory_mb=0"
SUBJECTS = (
    Subject("ResNet-32, classification", (*words("vision", "classification", "cifar100", 128), "--sample"), "memory"),
    Subject(
        "ViT-B/16, classification",
        words("vision", "classification", "image_folder", 2, "model=timm/vit_base_patch16_224", "image_size=224"),
        "a JPEG",
    ),
    Subject("BERT base, text-classification", words("hf", "text-classification", "manifest", 2), "a line", bert),
    Subject("UniVL, captioning", (*words("univl", "captioning", "youcook2", 2), "--sample"), "features"),
    Subject("All-in-one, qa", words("allinone", "qa", "manifest", 2, FRESH), "3 frames"),
    Subject("CLIP ViT-B/32, retrieval", words("clip", "retrieval", "manifest", 2, FRESH, "frames=4"), "4 frames", clip),
    Subject("VIOLET, qa", words("violet", "qa", "manifest", 2, FRESH, "codes=colour"), "5 frames"),
    Subject("ALPRO, qa", words("alpro", "qa", "manifest", 2, FRESH), "16 frames"),
)


class Launches(DispatchMode):
    """Within this context, counts the operations that would launch a kernel.

    Attributes:
        total: Their number, without those of optimisers, whose fused kernels do not grow with the model.
        paused: Count nothing.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total, self.paused = 0, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and count it."""
        result = func(*args, **(kwargs or {}))
        shares = any(each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns)
        self.total += not (self.paused or shares or func.overloadpacket.__name__ in HOST_ONLY)
        return result


def write_files(videos: Path, folder: Path) -> Path:
    """Write a manifest with all columns, and the videos' first frames as JPEG by class; return the manifest."""
    import av

    found = sorted(path.resolve() for path in videos.rglob("*") if path.suffix in (".mp4", ".avi", ".mkv", ".webm"))
    if len(found) < 2:
        sys.exit(f"error: fewer than two videos in {videos}\n  Give a folder of mp4, avi, mkv or webm files.")
    lines = []
    for split, count in ITEMS.items():
        for number in range(count):
            path, text = found[number % len(found)], " ".join(WORDS[: 6 + number % 7])
            more = {
                "question": f"what is cut {number % 5}?",
                "answer": WORDS[number % 4],
                "label": f"class {number % 2}",
            }
            lines.append({"split": split, "video": os.fspath(path), "captions": text, **more})
    table = folder / "manifest.jsonl"
    table.write_text("".join(json.dumps(line) + "\n" for line in lines))
    texts = [{"split": line["split"], "text": line["captions"], "label": line["label"]} for line in lines]
    (folder / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in texts))
    for number in range(sum(ITEMS.values())):
        place = folder / "images" / "train" / f"class{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        with av.open(os.fspath(found[number % len(found)])) as reader:
            for frame in islice(reader.decode(video=0), 1):
                frame.to_image().save(place / f"{number}.jpg")
    return table


def train(subject: Subject, table: Path, folder: Path, steps: int) -> dict[str, Any]:
    """Train with ``meltr run``; return its results."""
    command = [sys.executable, "-m", "meltr", "run", *subject.words, "--quiet", "--output-dir", os.fspath(folder)]
    command += ["--name", "run"]
    settings = [f"max_steps={steps}", "workers=0", "train.epochs=1000", "eval_every=1000", "eval_limit=2"]
    if "--sample" not in subject.words:
        root = table.parent / "images" if "image_folder" in subject.words else table
        root = table.with_name("texts.jsonl") if "hf" in subject.words else root
        command += ["--data-root", os.fspath(root)]
    if subject.model is not None:
        subject.model(folder / "model")
        settings.append(f"model={folder / 'model'}")
    command += [part for setting in settings for part in ("--set", setting)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stderr or done.stdout).strip())
    found: dict[str, Any] = json.loads((folder / "run" / "results.json").read_text())
    return found


def counted(run: FixedRun, settings: Mapping[str, Any]) -> tuple[float, float]:
    """Return the kernels and the floating-point operations of a training step, as the mean over a cycle."""
    stepper = run.stepper(settings)
    stepper.at_outer_step()
    stepper.cycle()  # chooses the estimator
    return _launches(stepper), _flops(stepper)


def _launches(stepper: Stepper) -> float:
    stepper.at_outer_step()
    launches, step = Launches(), stepper.trainer._step_optimizer

    def uncounted() -> None:
        launches.paused = True
        step()
        launches.paused = False

    stepper.trainer._step_optimizer = uncounted  # type: ignore[method-assign]
    with launches:
        stepper.cycle()
    stepper.trainer._step_optimizer = step  # type: ignore[method-assign]
    return float(launches.total) / stepper.every


def _flops(stepper: Stepper) -> float:
    stepper.at_outer_step()
    with FlopCounter() as flops:
        stepper.cycle()
    return float(flops.total) / stepper.every


def measure(subject: Subject, table: Path, folder: Path, *, steps: int, registry: Registry) -> dict[str, Any]:
    """Return a row: the run's account, and counts for the plain sum and for MELTR."""
    results = train(subject, table, folder, steps)
    run = FixedRun(RunFolder(folder / "run").read_spec(), registry)
    size = run.spec.train.batch_size
    row: dict[str, Any] = {"name": subject.name, "reads": subject.reads, "batch": size, "steps": results["steps"]}
    row |= {"time": results["time"], "bound_by": results["bound_by"], "estimator": results["estimator"]}
    row["parameters"], row["losses"] = run.describe()["parameters"], len(run.spec.losses)
    chosen = {"bilevel.estimator": results["estimator"]}
    for name, settings in {"sum": {"combiner": "sum"}, "meltr": chosen}.items():
        launches, flops = counted(run, settings)
        row[name] = {"launches": launches, "gflops": flops / size / 1e9}
    return row


HEAD = (
    "| backbone, published size | parameters, losses | step on the CPU | of it reading | outer steps | reading an item "
    "| GFLOPs an example, times the sum | kernels a step, times the sum | host-bound below batch | cores to read |",
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
)


def line(row: Mapping[str, Any], tflops: float, launch: float) -> str:
    """Return a row of the table.

    Args:
        row: What `measure` returned.
        tflops: Speed of the card, in 10^12 operations per second.
        launch: Seconds that its host needs per launch.
    """
    if "cause" in row:
        return f"| {row['name']} | {row['cause']} {'| ' * 8}|"
    spent, ours, plain = row["time"], row["meltr"], row["sum"]
    whole, item = spent["batches"] + spent["steps"], spent["batches"] / row["steps"] / row["batch"]
    example = ours["gflops"] / tflops / 1000  # seconds on the card
    outer = "-" if spent["outer_steps"] is None else f"{spent['outer_steps'] / whole:.0%}"
    cells = [
        row["name"],
        f"{row['parameters'] / 1e6:.1f} M, {row['losses']}",
        f"{whole / row['steps']:.2f} s for {row['batch']}",
        f"{spent['batches'] / whole:.1%}",
        outer,
        f"{1000 * item:.1f} ms ({row['reads']})",
        f"{ours['gflops']:.3g}, {ours['gflops'] / plain['gflops']:.2f}",
        f"{ours['launches']:,.0f}, {ours['launches'] / plain['launches']:.2f}",
        f"{ours['launches'] * launch / example:,.0f}",
        f"{item / example:.1f}" if item / example >= 0.05 else "0",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure, or show what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, help="folder of videos")
    parser.add_argument("--only", action="append", help="words in the names of the rows to measure; may be repeated")
    parser.add_argument("--steps", type=int, default=12, help="a multiple of K = 3, at least 12")
    parser.add_argument("--tflops", type=float, default=183.0, help="speed of the card, 10^12 operations per second")
    parser.add_argument("--launch-us", type=float, default=30.5, help="time of a launch on its host, microseconds")
    parser.add_argument("--out", type=Path, help="write all numbers as JSON after each row")
    parser.add_argument("--show", type=Path, metavar="JSON", help="measure nothing: print the table of such a file")
    parser.add_argument("--markdown", metavar="FILE#NAME", help="with --show: insert the table into this page")
    given = parser.parse_args()

    def shown(rows: Sequence[Mapping[str, Any]]) -> list[str]:
        return [line(row, given.tflops, given.launch_us / 1e6) for row in rows]

    if given.show:
        text = "\n".join([*HEAD, *shown(json.loads(given.show.read_text(encoding="utf-8"))["rows"])])
        if given.markdown:
            update(given.markdown, f"{text}\n", what="bounds")
        print(text)
        return
    if given.videos is None:
        parser.error("--videos FOLDER is missing")
    rows: list[dict[str, Any]] = []
    print("\n".join(HEAD), flush=True)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        table = write_files(given.videos, Path(scratch))
        for number, subject in enumerate(SUBJECTS):
            if given.only and not any(word in subject.name for word in given.only):
                continue
            folder = Path(scratch) / str(number)
            folder.mkdir()
            try:
                row = measure(subject, table, folder, steps=given.steps, registry=discover([]))
            except Exception as error:
                row = {"name": subject.name, "cause": str(error).splitlines()[0][:200]}
            rows.append(row)
            print(*shown([row]), flush=True)
            if given.out:
                write_json(given.out, {"rows": rows})


if __name__ == "__main__":
    main()
