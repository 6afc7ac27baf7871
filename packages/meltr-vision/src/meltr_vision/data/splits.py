"""The data of a run: its splits in device memory, and the facts about them that a trained run remembers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from meltr.context import Data, RunContext
from meltr.data.splits import Indices, limit_indices, split_indices
from meltr.seeding import derive
from meltr_vision.data.batches import EvalSplit, ImageBatches
from meltr_vision.data.images import ImageSet, Splits
from meltr_vision.data.source import read_data_set
from meltr_vision.data.transforms import Pipeline, pipeline_of
from meltr_vision.names import LABELS
from meltr_vision.options import VisionOptions

TRAIN_STREAM, HELD_OUT_STREAM = 0, 1
"""Streams of the run's seed, so that held-out batches are drawn independently of training batches."""


def build_data(context: RunContext) -> Data:
    """Read the data set of a run, put it on the device and make its splits.

    If the data set has no validation split, one is taken from the training images. Held-out images are taken from them
    only for ``bilevel.outer_batch=held_out``.

    Raises:
        UserError: If files are missing or broken, or no training images are left.
    """
    spec = context.spec
    options: VisionOptions = context.options
    found = read_data_set(context)
    pipeline = pipeline_of(spec.dataset, options, found.train)
    parts = {} if found.validation is not None else {"validation": spec.data.validation}
    if spec.bilevel.outer_batch == "held_out":
        parts["held_out"] = spec.data.held_out
    cut = split_indices(
        len(found.train), parts, seed=spec.data.split_seed, limit=spec.data.train_limit, labels=found.train.labels
    )
    images, labels = _resident(found.train, context.device)
    dropped = _dropped(spec.losses, found.train, options)
    others = None
    if found.train.others is not None and set(spec.losses) & set(LABELS) - set(dropped):
        others = torch.from_numpy(found.train.others).to(context.device)

    def batches(indices: Indices, stream: int) -> ImageBatches:
        return ImageBatches(
            images,
            labels,
            indices,
            others=others,
            pipeline=pipeline,
            batch_size=spec.train.batch_size,
            seed=derive(spec.seed, stream),
            drop_last=options.drop_last,
            rank=context.rank,
            world_size=context.world_size,
        )

    train = batches(cut["train"], TRAIN_STREAM)
    held_out = batches(cut["held_out"], HELD_OUT_STREAM) if "held_out" in parts else None
    if found.validation is not None:
        validation = _own_split(found.validation, pipeline, context)
    else:
        validation = _eval_split(found.train, images, labels, cut["validation"], pipeline=pipeline, context=context)
    test = None if found.test is None else _own_split(found.test, pipeline, context)
    sizes = {"train": train, "validation": validation, "test": test, "held_out": held_out}
    meta = _meta(found, pipeline, context) | {
        "splits": {name: len(each.indices) for name, each in sizes.items() if each is not None}
    }
    return Data(train=train, validation=validation, test=test, held_out=held_out, meta=meta, left_out=dropped)


def _dropped(losses: Sequence[str], train: ImageSet, options: VisionOptions) -> dict[str, str]:
    """Return the dropped losses, on other labels that these images do not have -> why."""
    dropped = {}
    for name in sorted(set(losses) & set(LABELS)):
        if train.others is None:
            dropped[name] = f"these images have no {name} labels beside those of the primary task"
        elif name == options.classes:
            dropped[name] = f"the {name} classes are the primary task (options.classes={name})"
    return dropped


def _resident(found: ImageSet, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return images (N, C, S, S) and labels (N,) in the memory of `device`."""
    images = torch.from_numpy(np.ascontiguousarray(found.images)).to(device)
    return images, torch.from_numpy(found.labels).to(device)


def _own_split(found: ImageSet, pipeline: Pipeline, context: RunContext) -> EvalSplit | None:
    """Return the split of all images of a set that has its own files."""
    images, labels = _resident(found, context.device)
    return _eval_split(found, images, labels, np.arange(len(found)), pipeline=pipeline, context=context)


def _eval_split(
    found: ImageSet, images: Tensor, labels: Tensor, indices: Indices, *, pipeline: Pipeline, context: RunContext
) -> EvalSplit | None:
    """Return the split of `indices`, limited to ``data.eval_limit`` images; None if it is empty."""
    limits = context.spec.data
    kept = limit_indices(len(indices), limits.eval_limit, seed=limits.split_seed, labels=found.labels[indices])
    if not len(kept):
        return None
    return EvalSplit(images, labels, torch.from_numpy(indices[kept]), pipeline, found.names, found.files)


def _meta(found: Splits, pipeline: Pipeline, context: RunContext) -> dict[str, Any]:
    """Return the facts about the data that a trained run needs to build its model and to predict."""
    own = (found.train, found.validation, found.test)
    return {
        "num_classes": len(found.train.names),
        **({} if found.train.others is None else {"num_others": int(found.train.others.max()) + 1}),
        "class_names": list(found.train.names),
        "image_size": pipeline.image_size,
        "stored_size": int(found.train.images.shape[2]),
        "channels": int(found.train.images.shape[1]),
        "mean": list(pipeline.mean),
        "std": list(pipeline.std),
        "megabytes": round(sum(each.images.nbytes for each in own if each is not None) / 2**20, 1),
        "sample": context.spec.sample,
    }
