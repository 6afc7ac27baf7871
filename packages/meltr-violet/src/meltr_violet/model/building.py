"""The model of a run: its sizes and heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from meltr.video.adapter.limits import check_length, check_vocabulary
from meltr_violet.model.config import BASE, TINY, ModelConfig
from meltr_violet.options import VioletOptions


def model_config(options: VioletOptions, meta: Mapping[str, Any]) -> ModelConfig:
    """Return the sizes of a run's model.

    Args:
        options: The backbone's settings.
        meta: Facts about the data: ``vocabulary`` and ``codes``, the numbers of tokens and of visual codes.

    Raises:
        UserError: If the vocabulary is larger than the published model's, or texts longer than the model's.
    """
    config = replace(TINY if options.size == "tiny" else BASE, attention=options.attention)
    check_length("text_length", options.text_length, config.text_positions)
    if options.size == "tiny":
        return replace(config, vocabulary=meta["vocabulary"], codes=meta["codes"])
    check_vocabulary(meta["vocabulary"], config.vocabulary)
    return config


def heads_of(task: str, losses: Sequence[str], *, choices: bool) -> tuple[str, ...]:
    """Return the heads that a task and its losses need; retrieval scores with the matching head anyway."""
    answering = () if task == "retrieval" else ("choice",) if choices else ("answer",)
    helping = [name for name in ("vtm", "mtm", "mvm") if name in losses or (name == "vtm" and task == "retrieval")]
    return (*answering, *helping)
