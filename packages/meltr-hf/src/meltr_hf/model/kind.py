"""What kind of model a configuration of transformers describes."""

from __future__ import annotations

from typing import Any

from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from meltr.errors import UserError
from meltr_hf.names import WRITING, Kind

_NOT_OF_THE_BODY = ("classifier", "classif", "summary", "layerdrop", "layer_drop")
"""Parts of the names of rates of dropout that concern a head, or whole layers."""

_LEAST = 4
"""Tokens of the shortest text that is any use: the least value of ``text_length``."""

_AFTER_PADDING = ("roberta", "camembert", "mpnet", "longformer", "luke", "ibert", "data2vec")
"""Parts of the names of types whose positions are counted from the one after the padding token's id."""


def kind_of(config: Any, task: str, name: str) -> Kind:
    """Return the kind of a model.

    A configuration for which transformers has both a masked and a causal language model (BERT) is an encoder unless it
    says ``is_decoder``.

    Args:
        config: Its configuration.
        task: The task that it has to serve.
        name: Its name, for messages.

    Raises:
        UserError: If it is not a model of texts, or cannot serve the task.
    """
    type_ = config.model_type
    kind: Kind
    if getattr(config, "is_encoder_decoder", False) and type_ in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        kind = "encoder-decoder"
    elif type_ in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        kind = "encoder"
    elif type_ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        kind = "decoder"
    else:
        hint = "Use an encoder (BERT), a decoder (GPT-2, Llama, Qwen) or an encoder-decoder (T5, BART) of transformers."
        raise UserError(f"model {name!r} is of the type {type_!r}, which is not a language model", hint)
    if kind == "encoder" and task == WRITING:
        hint = "Use an encoder-decoder (T5, BART) or a decoder (GPT-2, Llama, Qwen), or --task text-classification."
        raise UserError(f"model {name!r} ({type_}) is an encoder, which cannot write texts", hint)
    return kind


def has_dropout(config: Any) -> bool:
    """Tell whether the body of a model has dropout."""
    rates = {key: value for key, value in config.to_dict().items() if "drop" in key and isinstance(value, (int, float))}
    return any(rate > 0 for key, rate in rates.items() if not any(part in key for part in _NOT_OF_THE_BODY))


def fitting_lengths(
    config: Any, kind: Kind, task: str, tokenizer: Any, *, text_length: int, target_length: int
) -> dict[str, int]:
    """Return the most tokens of a text and of a target that the model has positions for, at most those given.

    A decoder that writes reads a text, a token after it and the target as one sequence.

    Args:
        config: Configuration of the model.
        kind: Its kind.
        task: The task.
        tokenizer: Its tokenizer, which may have a limit too.
        text_length: Tokens of a text that the user wants.
        target_length: Tokens of a target.

    Raises:
        UserError: If the target leaves no room for a text.
    """
    most = int(tokenizer.model_max_length)
    positions = getattr(config.get_text_config(), "max_position_embeddings", None) or 0
    if positions > 0:
        after = any(part in config.model_type for part in _AFTER_PADDING)
        most = min(most, positions - (1 + (config.pad_token_id or 0) if after else 0))
    target = min(target_length, most)
    room = most - target - 1 if kind == "decoder" and task == WRITING else most
    if room < _LEAST:
        message = f"target_length={target_length} leaves no room for a text: the model has {most:,} positions for both"
        raise UserError(message, f"Use --set target_length={most // 2} or less.")
    return {"text_length": min(text_length, room), "target_length": target}
