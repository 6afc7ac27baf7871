"""The model of a run: its sizes and heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from meltr.errors import UserError
from meltr.video.adapter.limits import check_vocabulary
from meltr_allinone.model.all_in_one import AllInOne
from meltr_allinone.model.config import SIZES, ModelConfig
from meltr_allinone.model.retrieval import Scoring
from meltr_allinone.options import AllInOneOptions


def model_config(options: AllInOneOptions, meta: Mapping[str, Any]) -> ModelConfig:
    """Return the sizes of a run's model.

    Args:
        options: The backbone's settings.
        meta: Facts about the data: ``vocabulary``, the number of tokens.

    Raises:
        UserError: If the vocabulary is larger than the published model's.
    """
    config = replace(
        SIZES[options.size],
        attention=options.attention,
        frames=options.frames,
        image_size=options.image_size,
        text_length=options.text_length,
    )
    if options.size == "tiny":
        return replace(config, vocabulary=meta["vocabulary"])
    check_vocabulary(meta["vocabulary"], config.vocabulary)
    return config


def scoring_of(options: AllInOneOptions, losses: Sequence[str]) -> Scoring:
    """Return the scoring of retrieval: as the options say, or according to the losses in use."""
    if options.scoring != "auto":
        return options.scoring
    return "dual" if "contrastive" in losses else "joint"


def heads_of(options: AllInOneOptions, task: str, losses: Sequence[str]) -> tuple[str, ...]:
    """Return the heads that a task, its losses and its scoring need."""
    scoring = scoring_of(options, losses) if task == "retrieval" else None
    needed = {
        "mlm": "mlm" in losses,
        "itm": "vtm" in losses or (scoring in ("joint", "rerank") and "rank" not in losses),
        "rank": "rank" in losses,
        "contrastive": "contrastive" in losses or scoring in ("dual", "rerank") or options.hard_negatives,
        "answer": task == "qa",
    }
    return tuple(name for name, wanted in needed.items() if wanted)


def build_model(options: AllInOneOptions, meta: Mapping[str, Any], *, task: str, losses: Sequence[str]) -> AllInOne:
    """Return the model of a run, randomly initialised.

    Args:
        options: The backbone's settings.
        meta: Facts about the data: ``vocabulary``, and ``answers`` for question answering.
        task: The task.
        losses: The losses in use.

    Raises:
        UserError: If hard negatives are requested without the loss that trains their selection.
    """
    if options.hard_negatives and "contrastive" not in losses:
        raise UserError(
            "hard_negatives=true selects wrong videos with the dual encoder, but only the loss contrastive trains it.",
            "Add the loss: --set losses=vtm,mlm,contrastive, or turn hard_negatives off.",
        )
    heads = heads_of(options, task, losses)
    return AllInOne(model_config(options, meta), heads=heads, answers=len(meta.get("answers", ())))
