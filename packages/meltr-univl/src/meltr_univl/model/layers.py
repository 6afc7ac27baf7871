"""Parts of the encoders, the decoder and the heads. They use BERT of transformers where weights and results agree."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig
from transformers.models.bert.modeling_bert import (
    BertIntermediate,
    BertLayer,
    BertOutput,
    BertSelfOutput,
)

from meltr.video.text import bert
from meltr_univl.model.config import EPS, HIDDEN_KEY, ModelConfig


def bert_config(config: ModelConfig) -> BertConfig:
    """Return the sizes as a configuration of transformers."""
    return bert.bert_config(config, layer_norm_eps=EPS)


def key_mask(mask: Tensor, like: Tensor) -> Tensor:
    """Return the additive attention mask, (B, 1, 1, L): -10000 at masked keys, 0 elsewhere.

    Args:
        mask: 1 where a key may be attended to, (B, L).
        like: A tensor with the desired type.
    """
    return ((1 - mask) * HIDDEN_KEY).to(like.dtype)[:, None, None]


class EncoderLayers(nn.Module):
    """The layers of an encoder.

    Args:
        config: Sizes.
        layers: Number of layers.
    """

    def __init__(self, config: ModelConfig, layers: int) -> None:
        super().__init__()
        sizes = bert_config(config)
        self.layer = nn.ModuleList(_encoder_layer(sizes, number) for number in range(layers))

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Map states (B, L, H) to the same shape; `mask` (B, L) is 1 at keys that may be attended to."""
        hidden = key_mask(mask, states)
        for layer in self.layer:
            states = layer(states, hidden)
        return states


def _encoder_layer(sizes: BertConfig, number: int) -> nn.Module:
    return BertLayer(sizes, layer_idx=number)


class PredictionHead(nn.Module):
    """The head that predicts words or frames from a table of an encoder, under its official name.

    Args:
        config: Sizes.
        outputs: Length of the bias.
    """

    def __init__(self, config: ModelConfig, outputs: int) -> None:
        super().__init__()
        self.predictions = bert.TiedHead(bert_config(config), outputs)

    def forward(self, states: Tensor, matrix: Tensor) -> Tensor:
        """Map (..., H) to (..., outputs), `matrix` is (outputs, H)."""
        return cast(Tensor, self.predictions(states, matrix))


class Attention(nn.Module):
    """Multi-head attention without its output layer, with keys and values that can be cached.

    Args:
        config: Sizes.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.heads, self.dropout, self.fused = config.heads, config.dropout, config.attention == "fused"
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def keys_values(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values of states (B, L, H), each (B, heads, L, H / heads)."""
        return self._split(self.key(states)), self._split(self.value(states))

    def forward(self, states: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Return the attention output (B, Q, H) for queries from states (B, Q, H); `mask` is added to the scores."""
        queries = self._split(self.query(states))
        noise = self.dropout if self.training else 0.0
        if self.fused:
            found = F.scaled_dot_product_attention(queries, keys, values, mask, noise)
        else:
            scores = queries @ keys.transpose(2, 3) * queries.shape[-1] ** -0.5
            weights = (scores if mask is None else scores + mask).softmax(-1)
            found = F.dropout(weights, noise, self.training) @ values
        return found.transpose(1, 2).flatten(2)

    def _split(self, states: Tensor) -> Tensor:
        return cast(Tensor, states.unflatten(-1, (self.heads, -1))).transpose(1, 2)


class AttentionBlock(nn.Module):
    """Attention, output layer, residual and LayerNorm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.att = Attention(config)
        self.output = BertSelfOutput(bert_config(config))

    def forward(self, states: Tensor, keys_values: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """Return the states (B, Q, H) after attention to keys and values."""
        return cast(Tensor, self.output(self.att(states, *keys_values, mask), states))


class DecoderLayer(nn.Module):
    """Self-attention, attention to the memory, feed-forward; each with residual and LayerNorm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.slf_attn, self.enc_attn = AttentionBlock(config), AttentionBlock(config)
        sizes = bert_config(config)
        self.intermediate = BertIntermediate(sizes)
        self.output = BertOutput(sizes)

    def feed_forward(self, states: Tensor) -> Tensor:
        """Return the states after the feed-forward block."""
        return cast(Tensor, self.output(self.intermediate(states), states))
