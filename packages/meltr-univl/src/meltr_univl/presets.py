"""Presets of the UniVL backbone: the paper's settings, and small models. This module does not import torch."""

from __future__ import annotations

from typing import Any

from meltr.specs import PresetInfo
from meltr.video.presets import PAPER, SMALL
from meltr_univl.released import RELEASED_PRESETS

RETRIEVAL = PresetInfo(
    name="retrieval",
    summary="The paper's settings for retrieval: Adam 3e-5, linear decay, 40 epochs; lengths and batch of UniVL. "
    "YouCook2 R@1 33.7, MSRVTT-7k 28.5, 9k 31.1.",
    settings={**PAPER, "train.epochs": 40, "train.batch_size": 128},
)

YOUCOOK2_RETRIEVAL = PresetInfo(
    name="youcook2-retrieval",
    summary="As retrieval, with UniVL's batch of 32 for YouCook2. R@1 33.7.",
    settings={**PAPER, "train.epochs": 40, "train.batch_size": 32},
)

CAPTIONING = PresetInfo(
    name="captioning",
    summary="The paper's settings for captions: Adam 3e-5, linear decay, 20 epochs; lengths and batch of UniVL. "
    "MSRVTT-full BLEU-4 44.2, CIDEr 52.8.",
    settings={**PAPER, "train.epochs": 20, "train.batch_size": 128},
)

YOUCOOK2_CAPTIONING = PresetInfo(
    name="youcook2-captioning",
    summary="As captioning, with UniVL's lengths (128 words, 96 seconds) and batch of 16 for YouCook2. CIDEr 138 from "
    "the video, 190 with the transcript (--set inputs=v+t).",
    settings={
        **PAPER,
        "train.epochs": 20,
        "train.batch_size": 16,
        "options.text_length": 128,
        "options.video_length": 96,
        "options.no_text": "none",
    },
)

SENTIMENT = PresetInfo(
    name="sentiment",
    summary="Sentiment: Adam 3e-5, 20 epochs. The paper reports MAE 0.759, but neither settings nor code.",
    settings={**PAPER, "train.epochs": 20, "train.batch_size": 32},
)

_TINY: dict[str, Any] = {
    **SMALL,
    "options.text_length": 20,
    "options.caption_length": 16,
    "options.video_length": 12,
    "options.pick": "even",
}

TINY_RETRIEVAL = PresetInfo(
    name="tiny-retrieval",
    summary="A small model trained from scratch for retrieval, for synthetic samples and first tries: under two "
    "minutes on two cores.",
    settings={**_TINY, "train.epochs": 10, "train.max_steps": 300, "train.eval_every": 4},
)

TINY_CAPTIONING = PresetInfo(
    name="tiny-captioning",
    summary="The small model for captions; for YouCook2 with transcripts.",
    settings={
        **_TINY,
        "options.caption_length": 24,
        "train.epochs": 10,
        "train.max_steps": 320,
        "train.eval_every": 4,
    },
)

TINY_SENTIMENT = PresetInfo(
    name="tiny-sentiment",
    summary="The small model for sentiment.",
    settings={**_TINY, "train.epochs": 10, "train.eval_every": 2},
)

PRESETS = (
    *RELEASED_PRESETS,
    RETRIEVAL,
    YOUCOOK2_RETRIEVAL,
    CAPTIONING,
    YOUCOOK2_CAPTIONING,
    SENTIMENT,
    TINY_RETRIEVAL,
    TINY_CAPTIONING,
    TINY_SENTIMENT,
)

DEFAULTS = {
    "retrieval": "retrieval",
    "retrieval/youcook2": "youcook2-retrieval",
    "captioning": "captioning",
    "captioning/youcook2": "youcook2-captioning",
    "sentiment": "sentiment",
}
SAMPLE_DEFAULTS = {
    "retrieval": "tiny-retrieval",
    "captioning": "tiny-captioning",
    "sentiment": "tiny-sentiment",
}
