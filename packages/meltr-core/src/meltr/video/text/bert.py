"""Parts of a BERT text encoder that several backbones share. They use transformers, the extra ``text``."""

from __future__ import annotations

from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertPredictionHeadTransform

from meltr.video.text.wordpiece import PAD


class BertSizes(Protocol):
    """The sizes of a model, as far as its text encoder goes: attributes of a backbone's own configuration."""

    @property
    def vocabulary(self) -> int:
        """Tokens."""

    @property
    def width(self) -> int:
        """D, dimension of a state."""

    @property
    def heads(self) -> int:
        """Attention heads of a layer."""

    @property
    def feedforward(self) -> int:
        """Hidden units of a feed-forward layer."""

    @property
    def text_positions(self) -> int:
        """Positions of the longest text."""

    @property
    def dropout(self) -> float:
        """Dropout after embeddings, of attention probabilities and after both output layers."""

    @property
    def attention(self) -> Literal["fused", "eager"]:
        """Kernel of attention."""


def bert_config(sizes: BertSizes, **others: Any) -> BertConfig:
    """Return the sizes as a configuration of transformers.

    Args:
        sizes: Sizes of the model.
        others: Further fields of ``BertConfig``, or other values, by their names there.
    """
    fields = {
        "vocab_size": sizes.vocabulary,
        "hidden_size": sizes.width,
        "num_attention_heads": sizes.heads,
        "intermediate_size": sizes.feedforward,
        "max_position_embeddings": sizes.text_positions,
        "hidden_act": "gelu",
        "hidden_dropout_prob": sizes.dropout,
        "attention_probs_dropout_prob": sizes.dropout,
        "pad_token_id": PAD,
    }
    made = BertConfig(**{**fields, **others})
    made._attn_implementation = "sdpa" if sizes.attention == "fused" else "eager"
    return made


class TiedHead(nn.Module):
    """BERT's masked language modelling head without its matrix, which is a table of embeddings that the caller passes.

    Args:
        sizes: Configuration of the encoder.
        outputs: V, length of the bias.
    """

    def __init__(self, sizes: BertConfig, outputs: int) -> None:
        super().__init__()
        self.transform = BertPredictionHeadTransform(sizes)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, states: Tensor, matrix: Tensor) -> Tensor:
        """Map states (..., D) to logits (..., V), with the table of embeddings (V, D)."""
        return F.linear(self.transform(states), matrix, self.bias)


class Pooler(nn.Module):
    """Pooled state tanh(W x + b) of position 0.

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)

    def forward(self, states: Tensor) -> Tensor:
        """Map states (B, L, D) to the pooled state, (B, D)."""
        return cast(Tensor, self.dense(states[:, 0])).tanh()
