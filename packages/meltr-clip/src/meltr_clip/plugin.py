"""Registration of the clip backbone. This module does not import torch."""

from __future__ import annotations

from meltr.hookspecs import hookimpl
from meltr.specs import BackboneInfo, BackboneTask
from meltr_clip.presets import BENCHMARKS, DEFAULTS, PRESETS, SAMPLE_DEFAULTS

LOSSES = {
    "retrieval": ("contrastive", "sigmoid", "matching", "masked_text", "consistency"),
    "action": ("label", "contrastive", "sigmoid", "consistency", "reconstruction"),
}
"""Task -> losses, primary first. Those that the towers cannot serve are dropped, or refused if they were named."""


@hookimpl
def register_backbones() -> list[BackboneInfo]:
    """The dual encoders and VideoMAE."""
    datasets = {"retrieval": ("msrvtt-7k", "msrvtt-9k", "manifest"), "action": ("kinetics400", "manifest")}
    return [
        BackboneInfo(
            name="clip",
            summary="CLIP, SigLIP, SigLIP 2 and VideoMAE of transformers: search and classes of images and videos.",
            adapter="meltr_clip.adapter:ClipAdapter",
            tasks=tuple(BackboneTask(task=task, losses=LOSSES[task], datasets=datasets[task]) for task in LOSSES),
            options="meltr_clip.options:ClipOptions",
            presets=PRESETS,
            default_presets=DEFAULTS,
            sample_presets=SAMPLE_DEFAULTS,
            benchmarks=BENCHMARKS,
        )
    ]
