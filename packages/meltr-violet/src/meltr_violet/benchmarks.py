"""Cases for ``meltr bench``, on synthetic samples. This module does not import torch."""

from __future__ import annotations

from typing import Any

from meltr.specs import BenchmarkInfo

_BASE: dict[str, Any] = {
    "options.size": "base",
    "options.frames": 5,
    "options.image_size": 224,
    "options.text_length": 25,
    "train.batch_size": 4,
    "train.lr": 1e-5,
}

BENCHMARKS = (
    BenchmarkInfo(
        name="violet-tiny",
        summary="VIOLET, tiny, 4 frames of 64 pixels, batch 16: answer, matching, masked text, masked video.",
        task="qa",
        dataset="msvd",
        settings={"sample": True, "preset": "tiny"},
        default=True,
    ),
    BenchmarkInfo(
        name="violet-base",
        summary="VIOLET, published size, 5 frames of 224 pixels, batch 4: the four losses of question answering.",
        task="qa",
        dataset="msvd",
        settings={"sample": True, **_BASE},
    ),
)
