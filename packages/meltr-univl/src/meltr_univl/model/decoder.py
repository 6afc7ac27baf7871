"""The caption decoder. It decodes all positions at once in training, and one at a time with cached keys in search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from meltr_univl.model.config import EPS, HIDDEN_KEY, ModelConfig
from meltr_univl.model.layers import DecoderLayer, PredictionHead, key_mask


class DecoderEmbeddings(nn.Module):
    """LayerNorm and dropout. The caller passes the word and position tables of the text encoder."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.LayerNorm = nn.LayerNorm(config.width, eps=EPS)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, words: Tensor, positions: Tensor) -> Tensor:
        """Return the embedding of word vectors (B, L, H) at positions (L, H)."""
        return cast(Tensor, self.dropout(self.LayerNorm(words + positions)))


class DecoderLayers(nn.Module):
    """Container that gives the layers their official name."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))


class Classifier(nn.Module):
    """Container that gives the word head its official name."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.cls = PredictionHead(config, config.vocabulary)


@dataclass(frozen=True)
class Kept:
    """Cached keys and values of the decoded tokens and of the memory, for every layer.

    Args:
        own: Keys and values of the hypotheses' tokens, (B K, heads, t, H / heads).
        memory: Keys and values of the memory, (B, heads, M, H / heads), shared by all hypotheses of an example.
        mask: Added to the attention scores of the memory, (B, 1, 1, M).
    """

    own: tuple[tuple[Tensor, Tensor], ...]
    memory: tuple[tuple[Tensor, Tensor], ...]
    mask: Tensor

    def reordered(self, rows: Tensor, examples: Tensor | None = None) -> Kept:
        """Return the cache of a new set of hypotheses.

        Args:
            rows: Index of the hypothesis that each new one continues, (B' K,).
            examples: Indices of the examples to keep, (B',); None: all.
        """
        own = tuple((keys[rows], values[rows]) for keys, values in self.own)
        if examples is None:
            return Kept(own, self.memory, self.mask)
        memory = tuple((keys[examples], values[examples]) for keys, values in self.memory)
        return Kept(own, memory, self.mask[examples])


class Decoder(nn.Module):
    """The decoder. Words and positions are embedded with the tables of the text encoder.

    Args:
        config: Sizes.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embeddings = DecoderEmbeddings(config)
        self.decoder = DecoderLayers(config)
        self.classifier = Classifier(config)

    @property
    def layers(self) -> list[DecoderLayer]:
        """The layers, from first to last."""
        return cast(list[DecoderLayer], list(self.decoder.layer))

    def forward(
        self, ids: Tensor, mask: Tensor, memory: Tensor, memory_mask: Tensor, words: Tensor, positions: Tensor
    ) -> Tensor:
        """Return the logits of every next token, (B, L, V).

        Args:
            ids: Tokens so far, (B, L).
            mask: 1 at real tokens, (B, L).
            memory: States of the cross encoder, (B, M, H).
            memory_mask: 1 at real positions, (B, M).
            words: The word table, (V, H).
            positions: The position table.
        """
        length = ids.shape[1]
        future = torch.ones(length, length, dtype=torch.bool, device=ids.device).triu(1)
        states = self.embeddings(nn.functional.embedding(ids, words), positions[:length])
        hidden = torch.where(future | (mask == 0)[:, None], HIDDEN_KEY, 0.0)[:, None].to(states.dtype)
        seen = key_mask(memory_mask, states)
        for layer in self.layers:
            states = layer.slf_attn(states, layer.slf_attn.att.keys_values(states), hidden)
            states = layer.enc_attn(states, layer.enc_attn.att.keys_values(memory), seen)
            states = layer.feed_forward(states)
        return cast(Tensor, self.classifier.cls(states, words))

    def start(self, memory: Tensor, memory_mask: Tensor) -> Kept:
        """Return the cache for the first call of `step`."""
        kept = tuple(layer.enc_attn.att.keys_values(memory) for layer in self.layers)
        none = memory.new_empty(len(memory), self.layers[0].slf_attn.att.heads, 0, kept[0][0].shape[-1])
        return Kept(tuple((none, none) for _ in self.layers), kept, key_mask(memory_mask, memory))

    def step(self, ids: Tensor, kept: Kept, words: Tensor, positions: Tensor) -> tuple[Tensor, Kept]:
        """Decode one more token of every hypothesis.

        Args:
            ids: The last token of each hypothesis, (B, K).
            kept: Cache of the previous tokens.
            words: The word table, (V, H).
            positions: The position table.

        Returns:
            Logits of the next token, (B, K, V), and the cache for the next step.
        """
        place = kept.own[0][0].shape[2]
        states = self.embeddings(nn.functional.embedding(ids, words), positions[place])
        own = []
        for layer, before, memory in zip(self.layers, kept.own, kept.memory, strict=True):
            single = states.flatten(0, 1)[:, None]  # (B K, 1, H): each hypothesis attends to its own past
            new = layer.slf_attn.att.keys_values(single)
            both = tuple(torch.cat(pair, 2) for pair in zip(before, new, strict=True))
            own.append((both[0], both[1]))
            states = layer.slf_attn(single, own[-1], None).view_as(states)
            states = layer.enc_attn(states, memory, kept.mask)  # hypotheses of an example are queries to one memory
            states = layer.feed_forward(states)
        logits: Tensor = self.classifier.cls(states, words)
        return logits, Kept(tuple(own), kept.memory, kept.mask)
