"""Registration of the ALPRO backbone. This module does not import torch."""

from __future__ import annotations

from meltr.hookspecs import hookimpl
from meltr.specs import BackboneInfo, BackboneTask
from meltr_alpro.presets import BENCHMARKS, DEFAULTS, PRESETS, RELEASED, SAMPLE_DEFAULTS


@hookimpl
def register_backbones() -> list[BackboneInfo]:
    """ALPRO."""
    return [
        BackboneInfo(
            name="alpro",
            summary="ALPRO (Li et al. 2022): TimeSformer and BERT, with contrast, matching, masked text and entities.",
            adapter="meltr_alpro.adapter:AlproAdapter",
            tasks=(
                BackboneTask(
                    task="qa",
                    losses=("answer", "vtc", "vtm", "mlm", "pem"),
                    datasets=("msvd", "msrvtt", "manifest"),
                ),
                BackboneTask(
                    task="retrieval",
                    losses=("vtm", "vtc", "mlm", "pem"),
                    datasets=("msrvtt-7k", "msrvtt-9k", "manifest"),
                ),
            ),
            options="meltr_alpro.options:AlproOptions",
            presets=PRESETS,
            recipes="meltr_alpro:recipes",
            released=RELEASED,
            default_presets=DEFAULTS,
            sample_presets=SAMPLE_DEFAULTS,
            benchmarks=BENCHMARKS,
        )
    ]
