"""Cases for ``meltr bench``, on enlarged digits of scikit-learn. This module does not import torch."""

from __future__ import annotations

from typing import Any

from meltr.specs import BenchmarkInfo


def _case(
    name: str, summary: str, *, model: str, size: int, batch: int, default: bool = False, **train: Any
) -> BenchmarkInfo:
    return BenchmarkInfo(
        name=name,
        summary=summary,
        task="classification",
        dataset="digits",
        settings={
            "options.model": model,
            "options.image_size": size,
            "train.batch_size": batch,
            **{f"train.{key}": value for key, value in train.items()},
        },
        default=default,
    )


BENCHMARKS = (
    _case(
        "resnet20",
        "ResNet-20 for CIFAR on 8-pixel digits, batch 64, SGD; one forward pass per loss.",
        model="resnet20",
        size=8,
        batch=64,
        default=True,
        optimizer="sgd",
        lr=0.01,
        weight_decay=5e-4,
    ),
    _case(
        "resnet32",
        "ResNet-32 for CIFAR at 32 pixels, batch 64, SGD; one forward pass per loss.",
        model="resnet32",
        size=32,
        batch=64,
        optimizer="sgd",
        lr=0.01,
        weight_decay=5e-4,
    ),
    _case(
        "vit_small",
        "timm's ViT-Small/16 at 112 pixels, batch 16; one forward pass per loss.",
        model="timm/vit_small_patch16_224",
        size=112,
        batch=16,
        lr=1e-4,
    ),
    _case(
        "vit_base",
        "timm's ViT-Base/16 at 112 pixels, batch 8; one forward pass per loss.",
        model="timm/vit_base_patch16_224",
        size=112,
        batch=8,
        lr=1e-4,
    ),
)
