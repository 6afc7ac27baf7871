"""The model of a run: sizes, parts, and the weights it starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from meltr.errors import UserError
from meltr_univl.model.beam_search import check_beams
from meltr_univl.model.config import SIZES, ModelConfig
from meltr_univl.model.univl import Univl
from meltr_univl.options import UnivlOptions
from meltr_univl.weights.pretrained import load_bert, load_pretrained

PART_OF = {
    "align": "align",
    "m_align": "align",
    "cmlm": "cmlm",
    "cmfm": "cmfm",
    "decoder": "decoder",
    "m_decoder": "decoder",
    "score": "score",
}
"""Loss -> the part that it needs; `joint` and `m_joint` need none."""


def model_config(options: UnivlOptions, meta: Mapping[str, Any]) -> ModelConfig:
    """Return the sizes of a run's model.

    Args:
        options: The backbone's settings.
        meta: Facts of the data: ``vocabulary`` and ``video_dim``.

    Raises:
        UserError: If texts, captions or clips are longer than the model's tables, the vocabulary is larger, or there
            are more hypotheses than words.
    """
    config = replace(SIZES[options.size], attention=options.attention, video_dim=meta["video_dim"])
    limits = {
        "text_length": (options.text_length, config.text_positions),
        "caption_length": (options.caption_length or 0, config.text_positions),
        "video_length": (options.video_length, config.visual_positions),
    }
    for name, (wanted, most) in limits.items():
        if wanted > most:
            raise UserError(
                f"{name}={wanted} is more than the {most} positions of the model.", f"Use --set {name}={most} or less."
            )
    check_beams(options.beams, meta["vocabulary"])
    if options.size == "tiny":
        return replace(config, vocabulary=meta["vocabulary"])
    if meta["vocabulary"] > config.vocabulary:
        raise UserError(
            f"The vocabulary has {meta['vocabulary']:,} tokens, the published model {config.vocabulary:,}.",
            "Give vocab.txt of bert-base-uncased with --set vocabulary=FILE.",
        )
    return config


def parts_of(options: UnivlOptions, task: str, losses: Sequence[str]) -> tuple[str, ...]:
    """Return the parts that a task and its losses need; captioning decodes and retrieval may match anyway."""
    needed = {PART_OF[name] for name in losses if name in PART_OF}
    if task == "captioning":
        needed.add("decoder")
    if task == "retrieval" and options.scoring == "align":
        needed.add("align")
    return tuple(name for name in ("align", "cmlm", "cmfm", "decoder", "score") if name in needed)


def build_model(
    options: UnivlOptions, meta: Mapping[str, Any], *, task: str, losses: Sequence[str], weights_follow: bool = False
) -> tuple[Univl, list[str]]:
    """Return the model of a run and a line for every file that was loaded into it.

    Args:
        options: The backbone's settings.
        meta: Facts of the data.
        task: The task.
        losses: The losses in use.
        weights_follow: Load nothing: a checkpoint follows.

    Raises:
        UserError: If a file of weights cannot be read or does not fit.
    """
    model = Univl(model_config(options, meta), parts=parts_of(options, task, losses))
    if weights_follow:
        return model, []
    if options.weights is not None:
        return model, [str(load_pretrained(model, options.weights))]
    if options.bert is not None:
        return model, [str(load_bert(model, options.bert))]
    if options.size == "tiny":
        return model, []
    return model, ["no pretrained weights: the model starts from random ones (--set weights=univl.pretrained.bin)"]
