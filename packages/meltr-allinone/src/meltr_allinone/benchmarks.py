"""Cases for ``meltr bench``: on miniatures. Imports no torch."""

from __future__ import annotations

from typing import Any

from meltr.specs import BenchmarkInfo

_BASE: dict[str, Any] = {
    "options.size": "base",
    "options.frames": 3,
    "options.image_size": 224,
    "options.text_length": 40,
    "losses": ["vtm", "mlm"],
    "train.batch_size": 4,
    "train.lr": 1e-5,
}

BENCHMARKS = (
    BenchmarkInfo(
        name="allinone-tiny",
        summary="All-in-one, tiny, 3 frames of 64 pixels, batch 16: matching, masked text, contrastive.",
        task="retrieval",
        dataset="msrvtt-9k",
        settings={"sample": True, "preset": "tiny-retrieval"},
        default=True,
    ),
    BenchmarkInfo(
        name="allinone-base",
        summary="All-in-one of the published size, 3 frames of 224 pixels, batch 4: matching and masked text.",
        task="retrieval",
        dataset="msrvtt-9k",
        settings={"sample": True, **_BASE},
    ),
)
