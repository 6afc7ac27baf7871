"""What bounds a step of each backbone at its published size: its files, the host, or the arithmetic.

    python benchmarks/bounds.py --videos FOLDER --out bounds.json
    python benchmarks/bounds.py --show bounds.json --markdown 'docs/efficiency.md#steps'

Every backbone trains for a few steps with ``meltr run`` (MELTR, exact g, K = 3), on pictures, clips and texts read from
files. One process reads and computes in turn, and nothing read is kept, so that the run's own account (``time`` of
``results.json``) gives the price of reading. Then the kernels and operations of a step are counted, whatever the
machine; with the speed of a card (``--tflops``, ``--launch-us``) they tell where its host, its arithmetic or its files
would be the limit. Weights are random: nothing but prices is looked at.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from end_to_end import videos_in
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from meltr.autograd.flops import FlopCounter
from meltr.bench.markdown import update
from meltr.engine.built_run import BuiltRun, build_run
from meltr.files import write_json
from meltr.folders.run_folder import RunFolder
from meltr.plugins import Registry, discover
from meltr.verify.pretended import pretending

ITEMS = {"train": 40, "validation": 4, "test": 4}
WORDS = ("a", "man", "cuts", "an", "onion", "while", "two", "dogs", "run", "over", "the", "green", "beach")
BERT_WORDS = 30522
"""Length of the vocabulary of bert-base-uncased."""

HOST_ONLY = ("is_same_size", "_has_same_storage_numel", "_unsafe_view", "detach", "device")
"""Operations that launch nothing, beside views."""


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
    model: Callable[[Path], object] | None = None


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


class Counter(FlopCounter):
    """Within this context, counts floating-point operations, and the kernels that a GPU would be given.

    Attributes:
        kernels: Their number.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and count it."""
        result = super().__torch_dispatch__(func, types, args, kwargs)
        shares = any(each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns)
        self.kernels += not (shares or func.overloadpacket.__name__ in HOST_ONLY)
        return result


@dataclass(frozen=True)
class Work:
    """What a part of a step takes.

    Args:
        kernels: Kernels launched.
        flops: Floating-point operations.
    """

    kernels: float = 0.0
    flops: float = 0.0

    def __add__(self, other: Work) -> Work:
        """Add two parts."""
        return Work(self.kernels + other.kernels, self.flops + other.flops)

    def __mul__(self, times: float) -> Work:
        """Return a part that is done several times."""
        return Work(self.kernels * times, self.flops * times)


def write_files(videos: Path, folder: Path) -> Path:
    """Write a manifest with all columns, and the videos' first frames as JPEG by class; return the manifest."""
    import av

    found, lines = videos_in(videos), []
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
    places = ["[PAD]", *(f"[unused{at}]" for at in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    places += [f"[unused{at}]" for at in range(99, 99 + BERT_WORDS - len(places))]
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in places))
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
    if {"allinone", "alpro", "violet"} & set(subject.words):
        settings.append(f"vocabulary={table.with_name('vocab.txt')}")
    if subject.model is not None:
        subject.model(folder / "model")
        settings.append(f"model={folder / 'model'}")
    command += [part for setting in settings for part in ("--set", setting)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stderr or done.stdout).strip())
    found: dict[str, Any] = json.loads((folder / "run" / "results.json").read_text())
    return found


def counted(built: BuiltRun, estimator: str) -> tuple[Work, Work, Work]:
    """Return the work of an inner step, of a MELTR step by exact g (mean over a cycle), and of that by forward mode.

    Fake tensors pass through the losses and back, in bfloat16 autocast, so that nothing is computed. Optimisers and the
    combiner are not counted: a few kernels each.

    Args:
        built: The run.
        estimator: Computes g.
    """
    batch, every, here = next(iter(built.data.train.batches(0))), built.context.spec.bilevel.every, torch.device("cpu")
    context = dataclasses.replace(built.context, generator=None)  # fake tensors draw nothing
    with pretending(built.model, batch, here) as (mode, given), mode:
        weights = [each for each in built.model.parameters() if each.requires_grad]

        def losses(*, coarse: bool = True) -> list[Tensor]:
            with torch.autocast("cpu", torch.bfloat16, enabled=coarse):
                return list(built.hooks.losses(built.model, given, context).values())

        def back(parts: Sequence[Tensor]) -> Work:
            whole = torch.stack(list(parts)).sum()
            return work(lambda: torch.autograd.grad(whole, weights, allow_unused=True, retain_graph=True))

        found = losses()
        inner = work(losses) + back(found)
        primary = back(found[:1])
        with torch.no_grad():
            precise = work(lambda: losses(coarse=False))
        extra = {"one_sided": primary + precise * 2, "difference": primary + precise * 2}
        extra["per_task"] = sum((back([each]) for each in found), Work()) + back(found) * -1
        extra["forward"] = primary + work(lambda: dual(built.model, losses))
    return inner, inner + extra[estimator] * (1 / every), inner + extra["forward"] * (1 / every)


def work(do: Callable[[], object]) -> Work:
    """Return what a call takes."""
    with Counter() as counter:
        do()
    return Work(counter.kernels, counter.total)


class Holder(nn.Module):
    """Lets `functional_call` exchange a model's weights while its losses are evaluated."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, losses: Callable[[], list[Tensor]]) -> list[Tensor]:
        """Return the losses."""
        return losses()


def dual(model: nn.Module, losses: Callable[[], list[Tensor]]) -> None:
    """Evaluate the losses with dual numbers, as forward mode does."""
    holder = Holder(model)
    names = {name: each for name, each in holder.named_parameters() if each.requires_grad}
    with torch.no_grad(), forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
        moved = {name: forward_ad.make_dual(each.detach(), torch.ones_like(each)) for name, each in names.items()}
        functional_call(holder, moved, (losses,))


def measure(subject: Subject, table: Path, folder: Path, *, steps: int, registry: Registry) -> dict[str, Any]:
    """Return a row: the run's account, and counts for the plain sum and for MELTR."""
    results = train(subject, table, folder, steps)
    built = build_run(RunFolder(folder / "run").read_spec(), registry, [])
    size = built.context.spec.train.batch_size
    row: dict[str, Any] = {"name": subject.name, "reads": subject.reads, "batch": size, "steps": results["steps"]}
    chosen = "one_sided" if results["estimator"] == "auto" else results["estimator"]  # auto: no outer step was taken
    row |= {"time": results["time"], "bound_by": results["bound_by"], "estimator": chosen}
    row["parameters"] = sum(each.numel() for each in built.model.parameters())
    row["losses"] = len(built.context.losses)
    for name, found in zip(("sum", "meltr", "forward"), counted(built, chosen), strict=True):
        row[name] = {"kernels": found.kernels, "gflops": found.flops / size / 1e9}
    return row


HEAD = (
    "| backbone, published size | parameters, losses | batch: a step on the CPU, of it reading | reading an item "
    "| GFLOPs an example, times the sum | kernels a step, times the sum | by forward mode | host-bound below batch "
    "| cores to read |",
    "| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
)


def digits(value: float) -> str:
    """Return a number with two digits or more, and no exponent."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def line(row: Mapping[str, Any], tflops: float, launch: float) -> str:
    """Return a row of the table.

    Args:
        row: What `measure` returned.
        tflops: Speed of the card, in 10^12 operations per second.
        launch: Seconds that its host needs per launch.
    """
    if "cause" in row:
        return f"| {row['name']} | {row['cause']} {'| ' * 7}|"
    spent, ours, plain, dual = row["time"], row["meltr"], row["sum"], row["forward"]
    whole, item = spent["batches"] + spent["steps"], spent["batches"] / row["steps"] / row["batch"]
    example = ours["gflops"] / tflops / 1000  # seconds on the card
    cells = [
        row["name"],
        f"{row['parameters'] / 1e6:.1f} M, {row['losses']}",
        f"{row['batch']}: {whole / row['steps']:.1f} s, {spent['batches'] / whole:.1%}",
        f"{row['reads']}, {digits(1000 * item)} ms",
        f"{digits(ours['gflops'])}, {ours['gflops'] / plain['gflops']:.2f}",
        f"{ours['kernels']:,.0f}, {ours['kernels'] / plain['kernels']:.2f} ({row['estimator']})",
        f"{dual['kernels'] / plain['kernels']:.2f}",
        f"{ours['kernels'] * launch / example:,.0f}",
        f"{item / example:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure, or show what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, help="folder of videos")
    parser.add_argument("--only", action="append", help="words in the names of the rows to measure; may be repeated")
    parser.add_argument("--steps", type=int, default=6, help="a multiple of K = 3")
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
