"""The model of a run: its sizes and parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from meltr.video.adapter.limits import check_length, check_vocabulary
from meltr_univl.model.beam_search import check_beams
from meltr_univl.model.config import SIZES, ModelConfig
from meltr_univl.options import UnivlOptions

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
        meta: Facts about the data: ``vocabulary`` and ``video_dim``.

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
        check_length(name, wanted, most)
    check_beams(options.beams, meta["vocabulary"])
    if options.size == "tiny":
        return replace(config, vocabulary=meta["vocabulary"])
    check_vocabulary(meta["vocabulary"], config.vocabulary)
    return config


def parts_of(options: UnivlOptions, task: str, losses: Sequence[str]) -> tuple[str, ...]:
    """Return the parts that a task and its losses need; captioning always decodes, and retrieval may match."""
    needed = {PART_OF[name] for name in losses if name in PART_OF}
    if task == "captioning":
        needed.add("decoder")
    if task == "retrieval" and options.scoring == "align":
        needed.add("align")
    return tuple(name for name in ("align", "cmlm", "cmfm", "decoder", "score") if name in needed)
