"""Presets of the ALPRO backbone, changes by ``--fidelity released``, a case for ``meltr bench``. Imports no torch."""

from __future__ import annotations

from typing import Any

from meltr.specs import BenchmarkInfo, PresetInfo
from meltr.video.presets import PAPER, SMALL

FINETUNING = PresetInfo(
    name="finetuning",
    summary="ALPRO's own settings for MSVD-QA (MELTR's paper has none): AdamW 5e-5, batch 192, 15 epochs. MSVD-QA 45.9 "
    "with ALPRO, 46.8 with MELTR in the paper.",
    settings={
        **PAPER,
        "train.optimizer": "adamw",
        "train.betas": [0.9, 0.98],
        "train.eps": 1e-6,
        "train.lr": 5e-5,
        "train.warmup": 0.1,
        "train.clip_norm": 20.0,
        "train.epochs": 15,
        "train.batch_size": 192,
    },
)

_TINY: dict[str, Any] = {
    **SMALL,
    "options.frames": 4,
    "options.image_size": 64,
    "options.text_length": 16,
    "options.sampling": "fixed",
    "options.pem_threshold": 0.0,
    "train.epochs": 4,
}
_SUMMARY = "A small model from scratch, for synthetic samples and first tries, for "
TINY = PresetInfo(name="tiny", summary=f"{_SUMMARY}questions.", settings=_TINY)
_DUAL = {"primary": "vtc", "options.scoring": "dual", "options.text_length": 24, "bilevel.estimator": "auto"}
TINY_RETRIEVAL = PresetInfo(
    name="tiny-retrieval",
    summary=f"{_SUMMARY}retrieval by vectors: from scratch, matching needs far more steps.",
    settings={**_TINY, **_DUAL, "train.epochs": 3},
)

PRESETS = (FINETUNING, TINY, TINY_RETRIEVAL)
DEFAULTS = {"qa": "finetuning", "retrieval": "finetuning"}
SAMPLE_DEFAULTS = {"qa": "tiny", "retrieval": "tiny-retrieval"}

RELEASED: dict[str, Any] = {
    "options.eval_sampling": "released",
    "options.video_weights": "released",
    "options.pem_ignore": "released",
}
"""Settings of ALPRO's released code; MELTR's code for ALPRO was not released. See docs/alpro.md."""

BENCHMARKS = (
    BenchmarkInfo(
        name="alpro-tiny",
        summary="ALPRO, tiny, 4 frames of 64 pixels, batch 16: answer, contrast, matching, masked text, entities.",
        task="qa",
        dataset="msvd",
        settings={"sample": True, "preset": "tiny"},
        default=True,
    ),
)
