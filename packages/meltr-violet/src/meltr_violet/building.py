"""The model of a run: sizes, heads, and the weights it starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from meltr.errors import UserError
from meltr_violet.model.config import BASE, TINY, ModelConfig
from meltr_violet.model.violet import Violet
from meltr_violet.options import VioletOptions
from meltr_violet.weights.pretrained import load_bert, load_checkpoint, load_video_swin


def model_config(options: VioletOptions, meta: Mapping[str, Any]) -> ModelConfig:
    """Return the sizes of a run's model.

    Args:
        options: The backbone's settings.
        meta: Facts of the data: ``vocabulary`` and ``codes``, numbers of tokens and of visual codes.

    Raises:
        UserError: If the vocabulary is larger than the published model's, or texts longer than the model's.
    """
    config = replace(TINY if options.size == "tiny" else BASE, attention=options.attention)
    if options.text_length > config.text_positions:
        raise UserError(
            f"text_length={options.text_length} is more than the {config.text_positions} positions of the model.",
            f"Use --set text_length={config.text_positions} or less.",
        )
    if options.size == "tiny":
        return replace(config, vocabulary=meta["vocabulary"], codes=meta["codes"])
    if meta["vocabulary"] > config.vocabulary:
        raise UserError(
            f"The vocabulary has {meta['vocabulary']:,} tokens, the published model {config.vocabulary:,}.",
            "Give vocab.txt of bert-base-uncased with --set vocabulary=FILE.",
        )
    return config


def heads_of(task: str, losses: Sequence[str], *, choices: bool) -> tuple[str, ...]:
    """Return the heads that a task and its losses need; retrieval scores with the matching head anyway."""
    answering = () if task == "retrieval" else ("choice",) if choices else ("answer",)
    helping = [name for name in ("vtm", "mtm", "mvm") if name in losses or (name == "vtm" and task == "retrieval")]
    return (*answering, *helping)


def build_model(
    options: VioletOptions, meta: Mapping[str, Any], *, task: str, losses: Sequence[str], weights_follow: bool = False
) -> tuple[Violet, list[str]]:
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
    model = Violet(
        model_config(options, meta),
        heads=heads_of(task, losses, choices="choices" in meta),
        answers=len(meta.get("answers", ())),
        answer_dropout=options.answer_dropout,
    )
    if weights_follow:
        return model, []
    reports = []
    if options.weights is not None:
        reports.append(load_checkpoint(model, options.weights, fc=options.fc))
    else:
        if options.video_swin is not None:
            reports.append(load_video_swin(model, options.video_swin))
        if options.bert is not None:
            reports.append(load_bert(model, options.bert))
    lines = [str(report) for report in reports]
    if not lines and options.size == "base":
        lines.append("no pretrained weights: the model starts from random ones (--set weights=ckpt_violet_pretrain.pt)")
    return model, lines
