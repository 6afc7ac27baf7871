"""Presets of the All-in-one backbone: the paper's settings, MELTR's released ones, and small models.

This module does not import torch.
"""

from __future__ import annotations

from typing import Any

from meltr.specs import PresetInfo
from meltr.video.presets import PAPER, SMALL

RETRIEVAL = PresetInfo(
    name="retrieval",
    summary="The paper's settings for retrieval (matching and masked text): Adam 3e-5, linear decay, 40 epochs; batch "
    "256 as in its code. MSRVTT-7k R@1 38.6, 9k 41.3.",
    settings={**PAPER, "train.epochs": 40, "train.batch_size": 256},
)

QA = PresetInfo(
    name="qa",
    summary="All-in-one's own settings for open-ended questions (the MELTR paper has none): AdamW 1e-4, ten times that "
    "for the answers, batch 512, 20 epochs.",
    settings={
        **PAPER,
        "train.optimizer": "adamw",
        "train.betas": [0.9, 0.98],
        "train.lr": 1e-4,
        "train.weight_decay": 0.01,
        "train.warmup": 0.1,
        "train.epochs": 20,
        "train.batch_size": 512,
        "options.answer_lr_scale": 10.0,
    },
)

MSRVTT_RELEASED = PresetInfo(
    name="msrvtt-released",
    summary="MELTR's released settings for MSRVTT, 7k and 9k: contrastive and masked text, AdamW 3e-4, 200 epochs.",
    settings={
        "losses": ["contrastive", "mlm"],
        "primary": "mlm",
        "train.optimizer": "adamw",
        "train.betas": [0.9, 0.98],
        "train.lr": 3e-4,
        "train.weight_decay": 0.01,
        "train.schedule": "linear",
        "train.warmup": 0.1,
        "train.schedule_counts": "before",
        "train.epochs": 200,
        "train.batch_size": 256,
        "bilevel.every": 5,
        "bilevel.gamma": 0.1,
        "bilevel.outer_lr": 1e-4,
        "bilevel.outer_weight_decay": 3e-5,
        "bilevel.outer_betas": [0.9, 0.98],
        "options.sampling": "released",
        "options.eval_sampling": "released",
        "options.retrieval_views": 3,
        "combiner_options.width": 128,
        "combiner_options.feedforward": 128,
        "combiner_options.scale_hidden": 128,
        "combiner_options.dropout": 0.1,
    },
)

_TINY: dict[str, Any] = {
    **SMALL,
    "options.frames": 3,
    "options.image_size": 64,
    "options.text_length": 16,
    "options.stored_frames": 6,
}

TINY = PresetInfo(
    name="tiny",
    summary="A small model from scratch for questions, for synthetic samples: under two minutes on two cores.",
    settings={**_TINY, "train.epochs": 4},
)

TINY_RETRIEVAL = PresetInfo(
    name="tiny-retrieval",
    summary="The small model for retrieval, with the contrastive loss beside matching and masked text.",
    settings={
        **_TINY,
        "losses": ["vtm", "mlm", "contrastive"],
        "options.text_length": 24,
        "train.epochs": 15,
        "train.eval_every": 5,
    },
)

PRESETS = (RETRIEVAL, QA, MSRVTT_RELEASED, TINY, TINY_RETRIEVAL)

DEFAULTS = {"retrieval": "retrieval", "qa": "qa"}
SAMPLE_DEFAULTS = {"retrieval": "tiny-retrieval", "qa": "tiny"}
RELEASED_DEFAULTS = {"retrieval": "msrvtt-released"}

RELEASED: dict[str, Any] = {
    "options.negatives": "own",
    "options.false_videos": "dataset",
    "options.false_items": "any",
    "bilevel.replay_eviction": "random",
    "bilevel.replay_reset": False,
    "bilevel.outer_clip_norm": 1.0,
}
"""Settings of MELTR's released code that hold for every data set; see docs/allinone.md."""
