"""Read the data set of a run and make its splits in device memory."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from meltr.context import Data, RunContext
from meltr.data.splits import Indices, limit_indices, split_indices
from meltr.errors import UserError
from meltr.seeding import derive
from meltr_vision.data.batches import EvalSplit, ImageBatches, Pipeline
from meltr_vision.data.folders import read_image_folder
from meltr_vision.data.images import CIFARS, ImageSet, Splits, miniature, read_cifar, read_digits
from meltr_vision.model import LABELS
from meltr_vision.options import VisionOptions

FOLDER_SIZE = 224
"""Side in pixels of folder images if ``options.image_size`` is not set."""

NORMALISATION = {
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "digits": ((0.3053,), (0.3761,)),
    "image_folder": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Data set -> channel means and standard deviations of its training images in 0..1 (ImageNet's for folders)."""

TRAIN_STREAM, HELD_OUT_STREAM = 0, 1
"""Streams of the run's seed, so that held-out batches are drawn independently of training batches."""


def build_data(context: RunContext) -> Data:
    """Read the data set of a run, put it on the device and make its splits.

    If the data set has no validation split, one is taken from the training images. Held-out images are taken from them
    only for ``bilevel.outer_batch=held_out``.

    Raises:
        UserError: If files are missing or broken, or no training images are left.
    """
    spec, options = context.spec, context.options
    read = _read(context)
    pipeline = _pipeline(spec.dataset, options, read.train)
    parts = {} if read.validation is not None else {"validation": spec.data.validation}
    if spec.bilevel.outer_batch == "held_out":
        parts["held_out"] = spec.data.held_out
    cut = split_indices(
        len(read.train), parts, seed=spec.data.split_seed, limit=spec.data.train_limit, labels=read.train.labels
    )
    images, labels = _resident(read.train, context.device)
    gone = _dropped(spec.losses, read.train, options)
    others = None
    if read.train.others is not None and set(spec.losses) & set(LABELS) - set(gone):
        others = torch.from_numpy(read.train.others).to(context.device)

    def source(indices: Indices, stream: int) -> ImageBatches:
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

    train = source(cut["train"], TRAIN_STREAM)
    held_out = source(cut["held_out"], HELD_OUT_STREAM) if "held_out" in parts else None
    if read.validation is not None:
        validation = _own_split(read.validation, pipeline, context)
    else:
        validation = _eval_split(read.train, images, labels, cut["validation"], pipeline=pipeline, context=context)
    test = None if read.test is None else _own_split(read.test, pipeline, context)
    sizes = {"train": train, "validation": validation, "test": test, "held_out": held_out}
    meta = _meta(read, pipeline, context) | {
        "splits": {name: len(each.indices) for name, each in sizes.items() if each is not None}
    }
    return Data(train=train, validation=validation, test=test, held_out=held_out, meta=meta, left_out=gone)


def _dropped(losses: Sequence[str], train: ImageSet, options: VisionOptions) -> dict[str, str]:
    """Return the losses on other labels that these images do not have, and why."""
    gone = {}
    for name in sorted(set(losses) & set(LABELS)):
        if train.others is None:
            gone[name] = f"these images have no {name} labels beside those of the primary task"
        elif name == options.classes:
            gone[name] = f"the {name} classes are the primary task (options.classes={name})"
    return gone


def _read(context: RunContext) -> Splits:
    spec, options = context.spec, context.options
    if spec.dataset == "digits":
        return read_digits()
    if spec.dataset in CIFARS:
        cifar = CIFARS[spec.dataset]
        if options.classes == "coarse":
            if not cifar.others:
                raise UserError(
                    f"options.classes=coarse, but {spec.dataset} has no coarse labels.", "Use --dataset cifar100."
                )
            cifar = cifar.coarse()
        if spec.sample:
            return miniature(cifar.classes, others=cifar.others)
        return read_cifar(cifar, spec.data_root, fetch=spec.data.download, progress=_show)
    if spec.dataset != "image_folder":
        raise UserError(
            f"The vision backbone cannot read the data set {spec.dataset!r}.", "List what it can read: meltr list"
        )
    if spec.sample:
        return miniature(4)
    skipped: list[str] | None = [] if spec.data.allow_missing else None
    read = read_image_folder(spec.data_root, size=options.image_size or FOLDER_SIZE, skipped=skipped)
    if skipped:
        context.notes.append(f"{len(skipped)} images cannot be read; skipped: {', '.join(skipped)}")
    return read


def _show(done: int, total: int | None) -> None:
    """Show the progress of a download on a terminal."""
    if sys.stderr.isatty():
        whole = f" of {total / 2**20:.0f}" if total else ""
        end = "\n" if done == total else ""
        print(f"\r  {done / 2**20:.0f}{whole} MiB", end=end, file=sys.stderr, flush=True)


def _resident(images: ImageSet, device: torch.device) -> tuple[Tensor, Tensor]:
    return (
        torch.from_numpy(np.ascontiguousarray(images.images)).to(device),
        torch.from_numpy(images.labels).to(device),
    )


def _own_split(read: ImageSet, pipeline: Pipeline, context: RunContext) -> EvalSplit | None:
    images, labels = _resident(read, context.device)
    return _eval_split(read, images, labels, np.arange(len(read)), pipeline=pipeline, context=context)


def _eval_split(
    read: ImageSet, images: Tensor, labels: Tensor, indices: Indices, *, pipeline: Pipeline, context: RunContext
) -> EvalSplit | None:
    """Return the split of `indices`, limited to ``data.eval_limit`` images; None if it is empty."""
    limits = context.spec.data
    kept = limit_indices(len(indices), limits.eval_limit, seed=limits.split_seed, labels=read.labels[indices])
    if not len(kept):
        return None
    return EvalSplit(images, labels, torch.from_numpy(indices[kept]), pipeline, read.names, read.files)


def _pipeline(dataset: str, options: VisionOptions, train: ImageSet) -> Pipeline:
    _, channels, size, _ = train.images.shape
    mean, std = _normalisation(dataset, options)
    if channels not in (len(mean), len(std)) or len(mean) != len(std):
        raise UserError(
            f"options.mean has {len(mean)} values and options.std {len(std)}, but the images have {channels} channels.",
            f"Give {channels} values each, e.g. --set 'mean=[{', '.join(['0.5'] * channels)}]'.",
        )
    small = {"digits": 1}.get(dataset, size // 8)
    padding = small if options.augment_padding is None else options.augment_padding
    if padding >= size:
        raise UserError(
            f"options.augment_padding={padding} must be smaller than the image side of {size} pixels.",
            f"Choose 0 to {size - 1}; a usual value is {small}.",
        )
    flip = dataset != "digits" if options.flip is None else options.flip
    return Pipeline(
        mean=tuple(mean),
        std=tuple(std),
        image_size=options.image_size or size,
        flip=flip,
        padding=padding,
        padding_mode=options.padding_mode,
    )


def _normalisation(dataset: str, options: VisionOptions) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return means and standard deviations: the given ones, else those of the pretrained weights or of the data set."""
    mean, std = NORMALISATION[dataset]
    if options.pretrained and options.timm_name is not None and len(mean) == 3:
        import timm

        from meltr_vision.building import known_timm_name

        card = timm.get_pretrained_cfg(known_timm_name(options.timm_name))
        if card is not None:
            mean, std = card.mean, card.std
    return options.mean or mean, options.std or std


def _meta(read: Splits, pipeline: Pipeline, context: RunContext) -> dict[str, Any]:
    own = {"train": read.train, "validation": read.validation, "test": read.test}
    return {
        "num_classes": len(read.train.names),
        **({} if read.train.others is None else {"num_others": int(read.train.others.max()) + 1}),
        "class_names": list(read.train.names),
        "image_size": pipeline.image_size,
        "stored_size": int(read.train.images.shape[2]),
        "channels": int(read.train.images.shape[1]),
        "mean": list(pipeline.mean),
        "std": list(pipeline.std),
        "megabytes": round(sum(each.images.nbytes for each in own.values() if each is not None) / 2**20, 1),
        "sample": context.spec.sample,
    }
