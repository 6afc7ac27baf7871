"""Presets of the VIOLET backbone: the paper's settings, MELTR's released argument files, and small models.

This module does not import torch.
"""

from __future__ import annotations

from typing import Any

from meltr.specs import PresetInfo
from meltr.video.presets import PAPER, SMALL

RETRIEVAL = PresetInfo(
    name="retrieval",
    summary="The paper's settings for retrieval: Adam 3e-5, linear decay, 40 epochs; batch 5 per GPU as in its code. "
    "MSRVTT-7k R@1 33.6, 9k 35.5.",
    settings={**PAPER, "train.epochs": 40, "train.batch_size": 5},
)

QA = PresetInfo(
    name="qa",
    summary="The paper's settings for open-ended questions: Adam 3e-5, linear decay, 20 epochs; batch 5 per GPU as in "
    "its code. MSVD-QA 51.7, TGIF-frame 63.4.",
    settings={**PAPER, "train.epochs": 20, "train.batch_size": 5},
)

CHOICE = PresetInfo(
    name="choice",
    summary="The paper's settings for multiple choice: Adam 3e-5, linear decay, 20 epochs; batch 3 per GPU as in its "
    "code. TGIF-action 95.4, TGIF-transition 97.5.",
    settings={**PAPER, "train.epochs": 20, "train.batch_size": 3, "options.text_length": 40},
)

ACTION = PresetInfo(
    name="action",
    summary="Kinetics-400 (73.1 in the paper): as for questions, because neither settings nor code were published.",
    settings={**PAPER, "train.epochs": 20, "train.batch_size": 5, "options.text_length": 3},
)


def _released(
    name: str,
    summary: str,
    *,
    lr: float,
    outer_lr: float,
    epochs: int = 20,
    batch: int = 5,
    length: int = 25,
    decay: float = 1e-3,
    outer_decay: float = 1e-4,
    retrieval: bool = False,
) -> PresetInfo:
    sizes = (512, 512, 256) if retrieval else (256, 256, 128)
    settings: dict[str, Any] = {
        "train.optimizer": "adamw",
        "train.betas": [0.9, 0.98],
        "train.lr": lr,
        "train.weight_decay": decay,
        "train.schedule": "constant",
        "train.epochs": epochs,
        "train.batch_size": batch,
        "bilevel.outer_optimizer": "adamw",
        "bilevel.outer_betas": [0.9, 0.98],
        "bilevel.outer_lr": outer_lr,
        "bilevel.outer_weight_decay": outer_decay,
        "options.text_length": length,
        "options.fc": "vtm" if retrieval else "none",
        **dict(
            zip((f"combiner_options.{key}" for key in ("width", "feedforward", "scale_hidden")), sizes, strict=True)
        ),
        "combiner_options.dropout": 0.1,
    }
    return PresetInfo(name=name, summary=f"MELTR's released argument file: {summary}.", settings=settings)


RELEASED_PRESETS: tuple[PresetInfo, ...] = (
    _released("msrvtt-released", "MSRVTT 7k and 9k", lr=3e-6, outer_lr=3e-6, outer_decay=1e-3, retrieval=True),
    _released("msvd-released", "MSVD-QA", lr=1.2e-5, outer_lr=1e-4, epochs=30),
    _released("tgif-frame-released", "TGIF-frame", lr=3e-5, outer_lr=1e-4, decay=1e-4),
    _released("tgif-action-released", "TGIF-action", lr=6e-6, outer_lr=1e-4, batch=3, length=40),
    _released("tgif-transition-released", "TGIF-transition", lr=3e-6, outer_lr=1e-4, batch=3, length=40),
)

_TINY: dict[str, Any] = {
    **SMALL,
    "options.frames": 4,
    "options.image_size": 64,
    "options.text_length": 16,
    "options.answer_dropout": 0.0,
    "options.temperature": 0.5,
    "train.batch_size": 8,
    "train.epochs": 2,
}

TINY = PresetInfo(
    name="tiny",
    summary="A small model trained from scratch, for synthetic samples and first tries: under two minutes on two CPU "
    "cores.",
    settings=_TINY,
)

TINY_RETRIEVAL = PresetInfo(
    name="tiny-retrieval",
    summary="The small model for retrieval, with longer texts.",
    settings={
        **_TINY,
        "options.text_length": 20,
        "train.betas": [0.9, 0.98],
        "train.epochs": 3,
        "train.max_steps": 540,
    },
)

TINY_CHOICE = PresetInfo(
    name="tiny-choice",
    summary="The small model for multiple choice: short texts and small frames. Answering and matching only, because "
    "masks would hide most of a small frame.",
    settings={
        **_TINY,
        "losses": ["answer", "vtm"],
        "options.text_length": 20,
        "options.choice_text": "plain",
        "options.frames": 5,
        "options.image_size": 32,
        "train.betas": [0.9, 0.98],
        "train.batch_size": 16,
        "train.epochs": 24,
        "train.max_steps": 400,
        "train.warmup": 0.2,
        "train.eval_every": 4,
    },
)

TINY_ACTION = PresetInfo(
    name="tiny-action",
    summary="The small model for actions: no text, more epochs over fewer clips.",
    settings={
        **_TINY,
        "options.text_length": 3,
        "options.frames": 4,
        "train.lr": 6e-4,
        "train.betas": [0.9, 0.98],
        "train.batch_size": 16,
        "train.epochs": 24,
        "train.max_steps": 400,
        "train.eval_every": 6,
        "train.warmup": 0.2,
    },
)

PRESETS = (RETRIEVAL, QA, CHOICE, ACTION, *RELEASED_PRESETS, TINY, TINY_RETRIEVAL, TINY_CHOICE, TINY_ACTION)

DEFAULTS = {
    "retrieval": "retrieval",
    "qa": "qa",
    "action": "action",
    "qa/tgif-action": "choice",
    "qa/tgif-transition": "choice",
}
SAMPLE_DEFAULTS = {
    "retrieval": "tiny-retrieval",
    "qa": "tiny",
    "action": "tiny-action",
    "qa/tgif-action": "tiny-choice",
    "qa/tgif-transition": "tiny-choice",
}
RELEASED_DEFAULTS = {
    "msrvtt-7k": "msrvtt-released",
    "msrvtt-9k": "msrvtt-released",
    "msvd": "msvd-released",
    "tgif-frame": "tgif-frame-released",
    "tgif-action": "tgif-action-released",
    "tgif-transition": "tgif-transition-released",
}

RELEASED: dict[str, Any] = {
    "options.clip": "masked",
    "options.choice_text": "released",
    "options.released_choice": True,
    "options.negatives": "own",
    "bilevel.replay_eviction": "random",
    "bilevel.phase": 2,
    "bilevel.phase_restarts": True,
    "bilevel.outer_clip_norm": 12.0,
}
"""Settings of MELTR's released code that hold for every data set; see docs/violet.md."""
