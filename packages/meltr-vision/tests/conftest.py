from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from meltr.context import RunContext
from meltr.specs import RunSpec, TaskInfo
from meltr_vision.options import VisionOptions

LOSSES = ("classification", "mixup", "rotation")


@pytest.fixture
def make_context() -> Callable[..., RunContext]:
    """Return a maker of contexts: dataset, losses, settings of RunSpec (nested dicts), and options."""

    def make(
        dataset: str = "digits", *, losses: tuple[str, ...] = LOSSES, spec: dict[str, Any] | None = None, **options: Any
    ) -> RunContext:
        return RunContext(
            spec=RunSpec(
                backbone="vision",
                task="classification",
                dataset=dataset,
                losses=losses,
                **({"sample": True} if spec is None else spec),
            ),
            task=TaskInfo(name="classification", summary="", metrics=("top1", "top5")),
            options=VisionOptions(**options),
            device=torch.device("cpu"),
            losses=losses,
            generator=torch.Generator(),
        )

    return make


def write_cifar(
    root: Path, dataset: str = "cifar100", *, train: int = 200, test: int = 100, coarse: bool = True
) -> dict[str, Any]:
    """Write a tiny data set in the official layout; return what went into it: split -> (pixels NHWC, labels)."""
    rng = np.random.default_rng(0)
    hundred = dataset == "cifar100"
    classes, key, names_key = (100, "fine_labels", "fine_label_names") if hundred else (10, "labels", "label_names")
    folder = root / ("cifar-100-python" if hundred else "cifar-10-batches-py")
    folder.mkdir(parents=True)
    train_files = ["train"] if hundred else [f"data_batch_{i}" for i in range(1, 6)]
    written: dict[str, Any] = {"train": ([], [])}
    for name in [*train_files, "test" if hundred else "test_batch"]:
        count = test if name.startswith("test") else train // len(train_files)
        pixels = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        labels = [int(i % classes) for i in rng.permutation(count)]
        rows = np.stack([np.concatenate([image[:, :, c].ravel() for c in range(3)]) for image in pixels])
        content = {"data": rows, key: labels, "batch_label": name}
        if hundred and coarse:
            content["coarse_labels"] = [label // 5 for label in labels]
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        if name.startswith("test"):
            written["test"] = (pixels, labels)
        else:
            written["train"] = ([*written["train"][0], *pixels], [*written["train"][1], *labels])
    names = {names_key: [f"name{i}" for i in range(classes)]}
    if hundred and coarse:
        names["coarse_label_names"] = [f"group{i}" for i in range(20)]
    (folder / ("meta" if hundred else "batches.meta")).write_bytes(pickle.dumps(names, protocol=2))
    return written


@pytest.fixture
def cifar_writer() -> Callable[..., dict[str, Any]]:
    return write_cifar
