"""The model of a run: its sizes, its heads, and which of its weights are trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from meltr.video.adapter.limits import check_length, check_vocabulary
from meltr_alpro.model.alpro import Alpro, freeze_released, freeze_unused
from meltr_alpro.model.config import BASE, TINY, ModelConfig
from meltr_alpro.options import AlproOptions


def model_config(options: AlproOptions, meta: Mapping[str, Any]) -> ModelConfig:
    """Return the sizes of a run's model.

    Args:
        options: The backbone's settings.
        meta: Facts about the data: ``vocabulary``, the number of tokens.

    Raises:
        UserError: If the vocabulary is larger than the published model's, or texts longer than the model's.
    """
    config = replace(
        TINY if options.size == "tiny" else BASE,
        attention=options.attention,
        frames=options.frames,
        image_size=options.image_size,
    )
    check_length("text_length", options.text_length, config.text_positions)
    if options.size == "tiny":
        return replace(config, vocabulary=meta["vocabulary"])
    check_vocabulary(meta["vocabulary"], config.vocabulary)
    return config


def heads_of(options: AlproOptions, task: str, losses: Sequence[str]) -> tuple[str, ...]:
    """Return the heads that a task, its losses and its scoring need."""
    needed = {
        "matching": "vtm" in losses or (task == "retrieval" and options.scoring != "dual"),
        "mlm": "mlm" in losses,
        "pem": "pem" in losses,
        "answer": task == "qa",
    }
    return tuple(name for name, wanted in needed.items() if wanted)


def build_model(options: AlproOptions, meta: Mapping[str, Any], *, task: str, losses: Sequence[str]) -> Alpro:
    """Return the model of a run, randomly initialised; what no loss trains is frozen.

    Args:
        options: The backbone's settings.
        meta: Facts about the data: ``vocabulary``, and ``answers`` for question answering.
        task: The task.
        losses: The losses in use.
    """
    heads = heads_of(options, task, losses)
    model = Alpro(model_config(options, meta), heads=heads, answers=len(meta.get("answers", ())))
    freeze_unused(model, losses)
    if options.video_weights == "released":
        freeze_released(model)
    return model
