"""Registration of the backbone hf. This module does not import torch."""

from __future__ import annotations

from meltr.hookspecs import hookimpl
from meltr.specs import BackboneInfo, BackboneTask
from meltr_hf.names import LOSSES
from meltr_hf.presets import BENCHMARKS, DEFAULTS, PRESETS, SAMPLE_DEFAULTS


@hookimpl
def register_backbones() -> list[BackboneInfo]:
    """Text models of transformers; which losses a run has depends on its model and on the columns of its table."""
    return [
        BackboneInfo(
            name="hf",
            summary="Text models of transformers by name or folder; masked or causal words, contrast, your columns.",
            adapter="meltr_hf.adapter:HfAdapter",
            tasks=tuple(
                BackboneTask(
                    task=task, losses=losses, datasets=("manifest", "text_table"), losses_of="meltr_hf.offers:losses_of"
                )
                for task, losses in LOSSES.items()
            ),
            options="meltr_hf.options:HfOptions",
            presets=PRESETS,
            default_presets=DEFAULTS,
            sample_presets=SAMPLE_DEFAULTS,
            benchmarks=BENCHMARKS,
        )
    ]
