"""Registration of the vision backbone and its data sets. This module does not import torch."""

from __future__ import annotations

from meltr.hookspecs import hookimpl
from meltr.specs import BackboneInfo, BackboneTask, DatasetInfo
from meltr_vision.benchmarks import BENCHMARKS
from meltr_vision.data.layouts import LAYOUTS
from meltr_vision.names import DEFAULT_LOSSES, LOSSES
from meltr_vision.presets import DEFAULTS, PRESETS


@hookimpl
def register_backbones() -> list[BackboneInfo]:
    """Image classifiers: the CIFAR ResNets, VGG-16 and timm's models."""
    return [
        BackboneInfo(
            name="vision",
            summary="Image classifiers: CIFAR ResNets, VGG-16, any timm model; losses mixup, rotation, coarse, fine.",
            adapter="meltr_vision.adapter:VisionAdapter",
            tasks=(
                BackboneTask(
                    task="classification",
                    losses=LOSSES,
                    default_losses=DEFAULT_LOSSES,
                    datasets=("cifar100", "cifar10", "digits", "image_folder"),
                ),
            ),
            options="meltr_vision.options:VisionOptions",
            presets=PRESETS,
            recipes="meltr_vision:recipes",
            default_presets=DEFAULTS,
            benchmarks=BENCHMARKS,
        )
    ]


@hookimpl
def register_datasets() -> list[DatasetInfo]:
    """Image classification data sets."""
    tasks = ("classification",)
    homepage = "https://www.cs.toronto.edu/~kriz/cifar.html"
    return [
        DatasetInfo(
            name="cifar100",
            summary="60,000 photos of 32x32 pixels in 100 classes and 20 superclasses (Krizhevsky 2009).",
            tasks=tasks,
            layout=LAYOUTS["cifar100"],
            homepage=homepage,
        ),
        DatasetInfo(
            name="cifar10",
            summary="60,000 photos of 32x32 pixels in 10 classes (Krizhevsky 2009).",
            tasks=tasks,
            layout=LAYOUTS["cifar10"],
            homepage=homepage,
        ),
        DatasetInfo(
            name="digits",
            summary="1,797 handwritten digits of 8x8 pixels, part of scikit-learn: runs anywhere in under a minute.",
            tasks=tasks,
            embedded=True,
            homepage="https://archive.ics.uci.edu/dataset/80",
        ),
        DatasetInfo(
            name="image_folder",
            summary="Your own images: one folder per class in train/, and in val/ and test/ if you have them.",
            tasks=tasks,
            layout=LAYOUTS["image_folder"],
        ),
    ]
