"""Builds the network of a run: new, from published weights, or to be filled from a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn

from meltr.context import RunContext
from meltr.errors import UserError
from meltr.seeding import derive
from meltr.texts import Column
from meltr.weights import some
from meltr_hf.model.lora import add_adapters
from meltr_hf.model.network import POOLING, Network, new_head
from meltr_hf.names import CLASSIFYING, OWN_OBJECTIVE, TINY, WRITING, Kind
from meltr_hf.options import HfOptions
from meltr_hf.weights.pretrained import load_model, new_model


def build_network(
    context: RunContext, config: Any, kind: Kind, *, classes: int, columns: Sequence[Column], vocabulary: int
) -> Network:
    """Return the network with the heads that the losses in use need.

    Args:
        context: The run.
        config: Configuration of the model.
        kind: Its kind.
        classes: Number of classes.
        columns: The further columns that are learned.
        vocabulary: Tokens of the tokenizer.

    Raises:
        UserError: If the weights cannot be loaded, or the model has fewer tokens than the tokenizer.
    """
    options: HfOptions = context.options
    config.use_cache = False  # `generate` has a setting of its own.
    tokens = config.get_text_config().vocab_size
    if tokens < vocabulary:
        message = f"model {options.model!r} has {tokens:,} tokens, its tokenizer {vocabulary:,}"
        raise UserError(message, "Use the tokenizer that the model was trained with.")
    with_words = context.spec.task == WRITING or OWN_OBJECTIVE[kind] in context.losses
    new: tuple[str, ...] = ()
    if context.weights_follow or options.model == TINY:
        model = new_model(config, kind, with_words=with_words, eager=options.attention == "eager")
    else:
        eager = options.attention == "eager"
        model, report = load_model(options.model, config, kind, with_words=with_words, eager=eager)
        new = report.missing
        if new and context.spec.task == WRITING:
            hint = "Use a model that was trained to write, such as one of its ForConditionalGeneration or ForCausalLM."
            raise UserError(f"model {options.model!r} lacks weights of the head that writes: {some(new)}", hint)
        context.notes.append(_said(str(report), new))
    if options.peft == "lora":
        add_adapters(model, options, new)
    heads = {"classification": classes} if context.spec.task == CLASSIFYING else {}
    heads |= {name: 1 for name in ("replaced", "reordered") if name in context.losses}
    pooling = POOLING[kind] if options.pooling == "auto" else options.pooling
    network = Network(model, kind, pooling, heads=heads, columns=[column.outputs for column in columns])
    named = [*network.heads.items(), *((c.name, head) for c, head in zip(columns, network.columns, strict=True))]
    for name, head in named:
        new_head(cast(nn.Linear, head), torch.Generator().manual_seed(derive(context.spec.seed, "head", name)))
    return network


def _said(report: str, new: Sequence[str]) -> str:
    """Return what is said about the weights."""
    return f"{report} The heads of the losses are new{', and so is its head for words' if new else ''}."
