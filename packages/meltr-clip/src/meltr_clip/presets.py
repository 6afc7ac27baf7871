"""Presets of the clip backbone, and a case for ``meltr bench``. Imports no torch."""

from __future__ import annotations

from typing import Any

from meltr.specs import BenchmarkInfo, PresetInfo
from meltr.video.presets import SMALL

_FINETUNING: dict[str, Any] = {
    "options.model": "openai/clip-vit-base-patch32",
    "train.optimizer": "adamw",
    "train.lr": 1e-5,
    "train.weight_decay": 0.1,
    "train.schedule": "cosine",
    "train.warmup": 0.1,
    "train.clip_norm": 1.0,
    "train.epochs": 5,
    "train.batch_size": 128,
    "bilevel.outer_lr": 1e-4,
}
FINETUNING = PresetInfo(
    name="finetuning",
    summary="CLIP ViT-B/32 of the hub, or --set model=NAME_OR_FOLDER: AdamW 1e-5, batch 128, 5 epochs, for a GPU.",
    settings=_FINETUNING,
)
TINY = PresetInfo(
    name="tiny",
    summary="A small model from scratch, for synthetic samples and first tries: minutes on a CPU.",
    settings={**SMALL, "options.text_length": 28, "options.frames": 4, "train.epochs": 6, "bilevel.estimator": "auto"},
)
TINY_VIDEOMAE = PresetInfo(
    name="tiny-videomae",
    summary="A small VideoMAE from scratch, for action.",
    settings={**TINY.settings, "options.family": "videomae", "options.frames": 8, "options.mask_ratio": 0.75},
)

PRESETS = (FINETUNING, TINY, TINY_VIDEOMAE)
DEFAULTS = {"retrieval": "finetuning", "action": "finetuning"}
SAMPLE_DEFAULTS = {"retrieval": "tiny", "action": "tiny"}

BENCHMARKS = (
    BenchmarkInfo(
        name="clip-tiny",
        summary="CLIP, tiny, 4 frames of 48 pixels, batch 16: contrast, sigmoid, matching, masked text, consistency.",
        task="retrieval",
        dataset="manifest",
        settings={"sample": True, "preset": "tiny"},
    ),
)
