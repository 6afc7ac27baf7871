from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from meltr_hf.model.tiny import tiny_tokenizer

TEXTS = [
    "the film was great today",
    "the book was not dull at noon",
    "a new song",
    "a long and weak story in the end was not fine but short",
]


def saved(folder: Path, kind: str, model_type: str) -> Path:
    """Write a small model of a type with its tokenizer, as save_pretrained does."""
    torch.manual_seed(0)
    tokenizer: Any = tiny_tokenizer(TEXTS, kind)  # type: ignore[arg-type]
    words, width = len(tokenizer), {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
    model: Any
    if model_type == "bert":
        model = BertForMaskedLM(BertConfig(vocab_size=words, intermediate_size=32, max_position_embeddings=64, **width))
    elif model_type == "distilbert":
        sizes = {"dim": 16, "hidden_dim": 32, "n_heads": 2, "n_layers": 2, "max_position_embeddings": 64}
        model = DistilBertForMaskedLM(DistilBertConfig(vocab_size=words, **sizes))
    elif model_type == "gpt2":
        ends = {"bos_token_id": 2, "eos_token_id": 2}
        model = GPT2LMHeadModel(GPT2Config(vocab_size=words, n_embd=16, n_head=2, n_layer=2, n_positions=64, **ends))
    else:
        sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2, "num_layers": 2, "decoder_start_token_id": 0}
        model = T5ForConditionalGeneration(T5Config(vocab_size=words, eos_token_id=2, pad_token_id=0, **sizes))
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


KINDS = {"bert": "encoder", "distilbert": "encoder", "gpt2": "decoder", "t5": "encoder-decoder"}


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a maker of folders of small models, each made once."""
    made: dict[str, Path] = {}

    def make(model_type: str) -> Path:
        if model_type not in made:
            made[model_type] = saved(tmp_path_factory.mktemp(model_type), KINDS[model_type], model_type)
        return made[model_type]

    return make
