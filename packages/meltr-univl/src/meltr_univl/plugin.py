"""Registration of the UniVL backbone. This module does not import torch."""

from __future__ import annotations

import typer

from meltr.hookspecs import hookimpl
from meltr.specs import BackboneInfo, BackboneTask
from meltr_univl import commands
from meltr_univl.presets import DEFAULTS, PRESETS, SAMPLE_DEFAULTS
from meltr_univl.released import RELEASED, RELEASED_DEFAULTS


@hookimpl
def register_backbones() -> list[BackboneInfo]:
    """UniVL."""
    return [
        BackboneInfo(
            name="univl",
            summary="UniVL (Luo et al. 2020): encoders of text and video, a cross encoder and a decoder; eight losses.",
            adapter="meltr_univl.adapter:UnivlAdapter",
            tasks=(
                BackboneTask(
                    task="retrieval",
                    losses=("align", "joint", "cmlm", "cmfm", "m_joint", "m_align", "decoder", "m_decoder"),
                    datasets=("youcook2", "msrvtt-7k", "msrvtt-9k", "manifest"),
                ),
                BackboneTask(
                    task="captioning",
                    losses=("decoder", "joint", "align", "cmlm", "cmfm", "m_joint", "m_align", "m_decoder"),
                    datasets=("youcook2", "msrvtt-full", "manifest"),
                ),
                BackboneTask(
                    task="sentiment",
                    losses=("score", "joint", "align", "cmlm", "cmfm", "m_joint", "m_align", "decoder", "m_decoder"),
                    datasets=("cmu-mosi", "manifest"),
                ),
            ),
            options="meltr_univl.options:UnivlOptions",
            presets=PRESETS,
            recipes="meltr_univl:recipes",
            released=RELEASED,
            default_presets=DEFAULTS,
            sample_presets=SAMPLE_DEFAULTS,
            released_presets=RELEASED_DEFAULTS,
        )
    ]


@hookimpl
def register_commands(app: typer.Typer) -> None:
    """Add ``meltr data features``."""
    commands.register(app)
