"""Registration of the VIOLET backbone. This module does not import torch."""

from __future__ import annotations

import typer

from meltr.hookspecs import hookimpl
from meltr.specs import BackboneInfo, BackboneTask
from meltr_violet import commands
from meltr_violet.benchmarks import BENCHMARKS
from meltr_violet.presets import DEFAULTS, PRESETS, RELEASED, RELEASED_DEFAULTS, SAMPLE_DEFAULTS


@hookimpl
def register_backbones() -> list[BackboneInfo]:
    """VIOLET."""
    return [
        BackboneInfo(
            name="violet",
            summary="VIOLET (Fu et al. 2021): Video Swin and a cross-modal BERT, with matching and masked modelling.",
            adapter="meltr_violet.adapter:VioletAdapter",
            tasks=(
                BackboneTask(
                    task="qa",
                    losses=("answer", "vtm", "mtm", "mvm"),
                    datasets=("msvd", "tgif-action", "tgif-transition", "tgif-frame", "manifest"),
                ),
                BackboneTask(
                    task="retrieval",
                    losses=("vtm", "mtm", "mvm"),
                    datasets=("msrvtt-7k", "msrvtt-9k", "manifest"),
                ),
                BackboneTask(
                    task="action",
                    losses=("classification", "mvm"),
                    datasets=("kinetics400", "manifest"),
                ),
            ),
            options="meltr_violet.options:VioletOptions",
            presets=PRESETS,
            recipes="meltr_violet:recipes",
            released=RELEASED,
            default_presets=DEFAULTS,
            sample_presets=SAMPLE_DEFAULTS,
            released_presets=RELEASED_DEFAULTS,
            benchmarks=BENCHMARKS,
        )
    ]


@hookimpl
def register_commands(app: typer.Typer) -> None:
    """Add ``meltr data codes``."""
    commands.register(app)
