"""Registration of the All-in-one backbone. This module does not import torch."""

from __future__ import annotations

from meltr.hookspecs import hookimpl
from meltr.specs import BackboneInfo, BackboneTask
from meltr_allinone.benchmarks import BENCHMARKS
from meltr_allinone.presets import DEFAULTS, PRESETS, RELEASED, RELEASED_DEFAULTS, SAMPLE_DEFAULTS


@hookimpl
def register_backbones() -> list[BackboneInfo]:
    """All-in-one."""
    return [
        BackboneInfo(
            name="allinone",
            summary="All-in-one (Wang et al. 2022): one ViT over text and frames, with matching and masked text.",
            adapter="meltr_allinone.adapter:AllInOneAdapter",
            tasks=(
                BackboneTask(
                    task="retrieval",
                    losses=("vtm", "mlm", "wpa", "contrastive", "rank"),
                    datasets=("msrvtt-7k", "msrvtt-9k", "manifest"),
                    default_losses=("vtm", "mlm"),
                ),
                BackboneTask(
                    task="qa",
                    losses=("answer", "vtm", "mlm", "wpa", "contrastive"),
                    datasets=("msvd", "msrvtt", "manifest"),
                    default_losses=("answer", "vtm", "mlm"),
                ),
            ),
            options="meltr_allinone.options:AllInOneOptions",
            presets=PRESETS,
            recipes="meltr_allinone:recipes",
            released=RELEASED,
            default_presets=DEFAULTS,
            sample_presets=SAMPLE_DEFAULTS,
            released_presets=RELEASED_DEFAULTS,
            benchmarks=BENCHMARKS,
        )
    ]
