"""Presets of the vision backbone, with source and expected result in each summary.

This module does not import torch.
"""

from __future__ import annotations

from typing import Any

from meltr.specs import PresetInfo

_SGD: dict[str, Any] = {
    "train.optimizer": "sgd",
    "train.lr": 0.1,
    "train.momentum": 0.9,
    "train.weight_decay": 5e-4,
    "train.batch_size": 128,
    "options.model": "resnet32",
    "options.shortcut": "A",
    "options.augment_padding": 4,
    "options.padding_mode": "zeros",
    "options.flip": True,
}


def _step_schedule(epochs: int, *milestones: int) -> dict[str, Any]:
    return {
        "train.epochs": epochs,
        "train.schedule": "step",
        "train.milestones": list(milestones),
        "train.lr_decay": 0.1,
        "train.eval_every": 5,
    }


CIFAR = PresetInfo(
    name="cifar",
    summary="Baseline: resnet32 (A), SGD 0.1, batch 128, 200 epochs, /10 at 100 and 150, weight decay 5e-4.",
    settings={**_SGD, **_step_schedule(200, 100, 150)},
)

HE2015 = PresetInfo(
    name="he2015",
    summary="He et al. 2015, section 4.2: 64k steps, /10 at 32k and 48k, weight decay 1e-4 (CIFAR-10 error 7.51 %).",
    # 45,000 training images make 351 steps per epoch: 32k steps are 91.2 epochs, 48k are 136.8, 64k are 182.3.
    settings={**_SGD, **_step_schedule(183, 91, 137), "train.max_steps": 64_000, "train.weight_decay": 1e-4},
)

COSINE200 = PresetInfo(
    name="cosine200",
    summary="chenyaofo/pytorch-cifar-models: Nesterov, batch 256, 200 epochs, cosine, option B (log: 70.16 on CIFAR-100"
    ", best epoch on test).",
    settings={
        **_SGD,
        "train.batch_size": 256,
        "train.nesterov": True,
        "train.epochs": 200,
        "train.schedule": "cosine",
        "train.eval_every": 5,
        "options.shortcut": "B",
        "options.mean": [0.507, 0.4865, 0.4409],
        "options.std": [0.2673, 0.2564, 0.2761],
    },
)

REPDISTILLER = PresetInfo(
    name="repdistiller",
    summary="HobbitLong/RepDistiller: SGD 0.05, batch 64, 240 epochs, /10 at 150, 180, 210, option B (71.14, best "
    "epoch on test).",
    settings={
        **_SGD,
        **_step_schedule(240, 150, 180, 210),
        "train.lr": 0.05,
        "train.batch_size": 64,
        "options.shortcut": "B",
    },
)

MWNET = PresetInfo(
    name="mwnet",
    summary="Meta-Weight-Net as released: batch 100, 120 epochs, /10 at 80 and 100, reflection padding, 1,000 "
    "held-out images for the outer step (Adam 1e-3, weight decay 1e-4).",
    settings={
        **_SGD,
        **_step_schedule(120, 80, 100),
        "train.batch_size": 100,
        "options.padding_mode": "reflect",
        "options.mean": [125.3 / 255, 123.0 / 255, 113.9 / 255],
        "options.std": [63.0 / 255, 62.1 / 255, 66.7 / 255],
        "data.held_out": 1000,
        "bilevel.outer_batch": "held_out",
        "bilevel.outer_lr": 1e-3,
        "bilevel.outer_weight_decay": 1e-4,
    },
)

MLS_BENCH = PresetInfo(
    name="mls-bench",
    summary="MLS-Bench, fine classes with coarse ones as helper: SGD 0.1, weight decay 5e-4, cosine, 200 epochs; batch "
    "128 is ours.",
    settings={**_SGD, "train.epochs": 200, "train.schedule": "cosine", "train.eval_every": 5},
)

QUICK = PresetInfo(
    name="quick",
    summary="A try in minutes on a CPU: resnet20, 5,000 training images, 4 epochs; accuracy far below a full run.",
    settings={
        **_SGD,
        "options.model": "resnet20",
        "train.epochs": 4,
        "train.schedule": "cosine",
        "train.warmup": 0.1,
        "data.train_limit": 5000,
        "data.eval_limit": 1000,
    },
)

DIGITS = PresetInfo(
    name="digits",
    summary="scikit-learn's digits: resnet20, SGD, 8 epochs, under a minute on one CPU core, about 98 % test accuracy.",
    settings={
        "train.optimizer": "sgd",
        "train.lr": 0.05,
        "train.momentum": 0.9,
        "train.nesterov": True,
        "train.weight_decay": 5e-4,
        "train.batch_size": 64,
        "train.epochs": 8,
        "train.schedule": "cosine",
        "train.warmup": 0.1,
        "train.eval_every": 2,
        "options.model": "resnet20",
        "options.flip": False,
        "options.augment_padding": 1,
    },
)

TIMM = PresetInfo(
    name="timm",
    summary="Fine-tune a pretrained timm model (resnet50, 224 px): AdamW, heads at 1e-3, trunk at 1e-4, 10 epochs, "
    "cosine.",
    settings={
        "options.model": "timm/resnet50.a1_in1k",
        "options.pretrained": True,
        "options.image_size": 224,
        "options.trunk_lr_scale": 0.1,
        "options.decay_all": False,
        "options.eval_batch_size": 100,
        "train.optimizer": "adamw",
        "train.lr": 1e-3,
        "train.weight_decay": 0.05,
        "train.batch_size": 32,
        "train.epochs": 10,
        "train.schedule": "cosine",
        "train.warmup": 0.05,
        "train.clip_norm": 1.0,
    },
)

PRESETS = (CIFAR, HE2015, COSINE200, REPDISTILLER, MWNET, MLS_BENCH, QUICK, DIGITS, TIMM)
DEFAULTS = {"cifar10": "cifar", "cifar100": "cifar", "digits": "digits", "image_folder": "timm"}
