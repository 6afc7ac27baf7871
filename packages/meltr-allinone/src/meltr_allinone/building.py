"""The model of a run: sizes, heads, and the weights it starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from meltr.errors import UserError
from meltr_allinone.model.all_in_one import AllInOne
from meltr_allinone.model.config import SIZES, ModelConfig
from meltr_allinone.model.retrieval import Scoring
from meltr_allinone.options import AllInOneOptions
from meltr_allinone.weights.pretrained import load_pretrained


def model_config(options: AllInOneOptions, meta: Mapping[str, Any]) -> ModelConfig:
    """Return the sizes of a run's model.

    Args:
        options: The backbone's settings.
        meta: Facts of the data: ``vocabulary``, the number of tokens.

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
    if meta["vocabulary"] > config.vocabulary:
        raise UserError(
            f"The vocabulary has {meta['vocabulary']:,} tokens, the published model {config.vocabulary:,}.",
            "Give vocab.txt of bert-base-uncased with --set vocabulary=FILE.",
        )
    return config


def scoring_of(options: AllInOneOptions, losses: Sequence[str]) -> Scoring:
    """Return how retrieval scores: as the options say, or by what the losses train."""
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


def build_model(
    options: AllInOneOptions,
    meta: Mapping[str, Any],
    *,
    task: str,
    losses: Sequence[str],
    weights_follow: bool = False,
) -> tuple[AllInOne, list[str]]:
    """Return the model of a run and lines about what was loaded into it.

    Args:
        options: The backbone's settings.
        meta: Facts of the data.
        task: The task.
        losses: The losses in use.
        weights_follow: Load nothing: a checkpoint follows.

    Raises:
        UserError: If a file of weights cannot be read or does not fit.
    """
    if options.hard_negatives and "contrastive" not in losses:
        raise UserError(
            "hard_negatives=true lets the dual encoder choose wrong videos, and without the loss contrastive it learns "
            "nothing.",
            "Add it: --set losses=vtm,mlm,contrastive, or leave hard_negatives out.",
        )
    model = AllInOne(
        model_config(options, meta),
        heads=heads_of(options, task, losses),
        answers=len(meta.get("answers", ())),
    )
    if weights_follow:
        return model, []
    if options.weights is not None:
        return model, [str(load_pretrained(model, options.weights))]
    if options.size == "tiny":
        return model, []
    return model, ["no pretrained weights: the model starts from random ones (--set weights=all-in-one-plus-224.ckpt)"]
