"""The text embedding and the cross-modal transformer: parts of BERT in transformers, without its masks and pooling."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertEmbeddings, BertLayer

from meltr.video.text import bert
from meltr_violet.model.config import ModelConfig


def bert_config(config: ModelConfig) -> BertConfig:
    """Return the sizes as a configuration of transformers."""
    return bert.bert_config(
        config,
        num_hidden_layers=config.layers,
        type_vocab_size=config.token_types,
        layer_norm_eps=config.text_eps,
    )


class TextEmbedding(BertEmbeddings):
    """Word, position and token type 0 embeddings, LayerNorm, dropout: ids (B, X) to (B, X, D)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(bert_config(config))  # type: ignore[no-untyped-call]


def _layer(config: BertConfig, number: int) -> BertLayer:
    return BertLayer(config, layer_idx=number)


class CrossEncoder(nn.Module):
    """The encoder layers of BERT over [video tokens ; text tokens]. Only padded text is masked out, as keys.

    Args:
        config: Sizes.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.bert_config = bert_config(config)
        self.layer = nn.ModuleList(_layer(self.bert_config, i) for i in range(config.layers))

    def forward(self, tokens: Tensor, visible: Tensor) -> Tensor:
        """Map tokens to states of the same shape.

        Args:
            tokens: (B, L, D).
            visible: (B, L), True where a token may be attended to.
        """
        mask = self._key_mask(tokens, visible)
        for layer in self.layer:
            tokens = layer(tokens, mask)
        return tokens

    def attention(self, tokens: Tensor, visible: Tensor) -> Iterator[Tensor]:
        """Yield the attention probabilities of every layer, (B, heads, L, L). Rows are queries.

        In training mode, dropout is applied to them. Padded queries have a row like any other.

        Args:
            tokens: (B, L, D).
            visible: (B, L), True where a token may be attended to.
        """
        with self._eager():
            mask = self._key_mask(tokens, visible)
            for layer in self.layer:
                assert isinstance(layer, BertLayer)
                context, probabilities = layer.attention.self(tokens, mask)
                yield probabilities
                attended = layer.attention.output(context, tokens)
                tokens = layer.feed_forward_chunk(attended)

    def _key_mask(self, tokens: Tensor, visible: Tensor) -> Tensor:
        """Return the mask for the attention kernel, (B, 1, 1, L): boolean, or a value to add to the logits."""
        keys = visible[:, None, None, :]
        if self.bert_config._attn_implementation == "sdpa":
            return keys
        lowest = torch.finfo(tokens.dtype).min
        return torch.zeros_like(keys, dtype=tokens.dtype).masked_fill(~keys, lowest)

    @contextmanager
    def _eager(self) -> Iterator[None]:
        """Make the layers return their attention probabilities within this context."""
        before = self.bert_config._attn_implementation
        self.bert_config._attn_implementation = "eager"
        try:
            yield
        finally:
            self.bert_config._attn_implementation = before
