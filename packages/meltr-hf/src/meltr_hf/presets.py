"""Presets of the backbone hf, and a case for ``meltr bench``. This module does not import torch."""

from __future__ import annotations

from typing import Any

from meltr.specs import BenchmarkInfo, PresetInfo

_FINETUNING: dict[str, Any] = {
    "train.optimizer": "adamw",
    "train.weight_decay": 0.01,
    "train.schedule": "linear",
    "train.warmup": 0.1,
    "train.clip_norm": 1.0,
    "train.batch_size": 32,
    "bilevel.outer_lr": 1e-4,
}
FINETUNING = PresetInfo(
    name="finetuning",
    summary="Fine-tune a classifier: DistilBERT unless --set model says another, AdamW 3e-5, batch 32, 3 epochs.",
    settings={
        **_FINETUNING,
        "options.model": "distilbert/distilbert-base-uncased",
        "options.head_lr_scale": 10.0,
        "train.lr": 3e-5,
        "train.epochs": 3,
    },
)
WRITING = PresetInfo(
    name="writing",
    summary="Fine-tune a model that writes: T5-small unless --set model says another, AdamW 3e-4, batch 32, 5 epochs.",
    settings={**_FINETUNING, "options.model": "google-t5/t5-small", "train.lr": 3e-4, "train.epochs": 5},
)
_LORA = {"options.peft": "lora", "train.weight_decay": 0.0}
LORA = PresetInfo(
    name="lora",
    summary="The preset finetuning with LoRA of rank 8 and a larger step: AdamW 3e-4, heads at 1e-3.",
    settings={**FINETUNING.settings, **_LORA, "train.lr": 3e-4, "options.head_lr_scale": 3.0},
)

_TINY: dict[str, Any] = {
    "options.model": "tiny",
    "options.text_length": 16,
    "train.batch_size": 32,
    "train.lr": 3e-3,
    "train.schedule": "cosine",
    "train.warmup": 0.1,
    "bilevel.outer_lr": 1e-3,
}
TINY = PresetInfo(
    name="tiny",
    summary="A small encoder from scratch, for the synthetic sample and first tries.",
    settings={**_TINY, "train.epochs": 8},
)
TINY_WRITING = PresetInfo(
    name="tiny-writing",
    summary="A small encoder-decoder from scratch, for the synthetic sample and first tries.",
    settings={**_TINY, "options.target_length": 8, "train.epochs": 12},
)

PRESETS = (FINETUNING, WRITING, LORA, TINY, TINY_WRITING)
DEFAULTS = {"text-classification": "finetuning", "text-to-text": "writing"}
SAMPLE_DEFAULTS = {"text-classification": "tiny", "text-to-text": "tiny-writing"}

BENCHMARKS = (
    BenchmarkInfo(
        name="hf-tiny",
        summary="A BERT of two layers, batch 32 of 16 tokens: class, mlm, contrastive, replaced, reordered, a column.",
        task="text-classification",
        dataset="text_table",
        settings={"sample": True, "preset": "tiny"},
        default=True,
    ),
)
