"""Runs of the toy backbone of `toy_backbone.py` with some of its lines changed."""

from __future__ import annotations

from pathlib import Path

from meltr.engine.run import execute
from meltr.plugins import Registry, discover
from meltr.settings import resolve
from meltr.specs import RunSpec
from places import TOY

META = 'meta={"classes": 2},'
BUILD_DATA = "    def build_data(self, context):\n"
BUILD_MODEL = "    def build_model(self):\n"
EVALUATION = 'meltr.Evaluation({"top1": 100 * float(hit.float().mean()), "top5": 100.0}, len(label))'


def changed_toy(folder: Path, *changes: tuple[str, str]) -> Path:
    """Write the toy backbone with (old, new) texts exchanged into `folder`; return the file."""
    text = TOY.read_text()
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    file = folder / f"changed_{folder.name}.py".replace("-", "_")
    file.write_text(text)
    return file


def lacking(folder: Path, **reasons: str) -> Path:
    """Write a toy backbone whose data leave losses out: name -> reason."""
    return changed_toy(folder, (META, f"{META} left_out={reasons!r},"))


def toy_spec(plugin: Path, *, combiner: str = "meltr", **settings) -> tuple[RunSpec, Registry]:
    """Return a short run of the toy backbone in `plugin`."""
    registry = discover([plugin])
    flags = {
        "train.epochs": 1, "train.batch_size": 32, "train.log_every": 1, "train.lr": 0.02, "device": "cpu",
        "combiner": combiner,
    }  # fmt: skip
    if combiner == "meltr":
        flags |= {"combiner_options.width": 16, "combiner_options.heads": 2, "combiner_options.feedforward": 16}
    choice = {"backbone": "toy", "task": "classification", "dataset": "rings"}
    return resolve(registry, **choice, flags=flags | settings, plugins=[plugin]), registry


def run_toy(plugin: Path, folder: Path | None, *, resume: bool = False, observers=(), **settings):
    """Run it and return its results."""
    spec, registry = toy_spec(plugin, **settings)
    return execute(spec, run_dir=folder, registry=registry, resume=resume, observers=observers)
