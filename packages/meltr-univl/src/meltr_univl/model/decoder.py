"""The caption decoder: all positions at once in training; one at a time, with keys and values kept, in search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from meltr_univl.model.config import EPS, HIDDEN_KEY, ModelConfig
from meltr_univl.model.layers import DecoderLayer, PredictionHead, key_mask


class DecoderEmbeddings(nn.Module):
    """LayerNorm and dropout; the tables of words and positions are the text encoder's, handed in."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.LayerNorm = nn.LayerNorm(config.width, eps=EPS)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, words: Tensor, positions: Tensor) -> Tensor:
        """Return the embedding of word vectors (B, L, H) at positions (L, H)."""
        return cast(Tensor, self.dropout(self.LayerNorm(words + positions)))


class DecoderLayers(nn.Module):
    """Holds the layers under the official name."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))


class Classifier(nn.Module):
    """Holds the word head under the official name."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.cls = PredictionHead(config, config.vocabulary)


@dataclass(frozen=True)
class Kept:
    """Keys and values of what was decoded so far, for every layer.

    Args:
        own: Of the hypotheses' tokens, (B K, heads, t, H / heads).
        memory: Of the memory, (B, heads, M, H / heads): all hypotheses of an example share them.
        mask: Added to the scores of the memory, (B, 1, 1, M).
    """

    own: tuple[tuple[Tensor, Tensor], ...]
    memory: tuple[tuple[Tensor, Tensor], ...]
    mask: Tensor

    def reordered(self, rows: Tensor, examples: Tensor | None = None) -> Kept:
        """Return the same for other hypotheses.

        Args:
            rows: Which hypothesis each new one goes on with, (B' K,).
            examples: Which examples stay, (B',); None: all.
        """
        own = tuple((keys[rows], values[rows]) for keys, values in self.own)
        if examples is None:
            return Kept(own, self.memory, self.mask)
        memory = tuple((keys[examples], values[examples]) for keys, values in self.memory)
        return Kept(own, memory, self.mask[examples])


class Decoder(nn.Module):
    """The decoder; words and positions are embedded by tables of the text encoder.

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
        """The layers, first to last."""
        return cast(list[DecoderLayer], list(self.decoder.layer))

    def forward(
        self, ids: Tensor, mask: Tensor, memory: Tensor, memory_mask: Tensor, words: Tensor, positions: Tensor
    ) -> Tensor:
        """Return the logits of every next token, (B, L, V).

        Args:
            ids: Tokens so far, (B, L).
            mask: 1 at real ones, (B, L).
            memory: States of the cross encoder, (B, M, H).
            memory_mask: 1 at real ones, (B, M).
            words: The table of words, (V, H).
            positions: The table of positions.
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
        """Return what `step` needs before the first token."""
        kept = tuple(layer.enc_attn.att.keys_values(memory) for layer in self.layers)
        none = memory.new_empty(len(memory), self.layers[0].slf_attn.att.heads, 0, kept[0][0].shape[-1])
        return Kept(tuple((none, none) for _ in self.layers), kept, key_mask(memory_mask, memory))

    def step(self, ids: Tensor, kept: Kept, words: Tensor, positions: Tensor) -> tuple[Tensor, Kept]:
        """Decode one more token of every hypothesis.

        Args:
            ids: The last token of each, (B, K).
            kept: Of the tokens before.
            words: The table of words, (V, H).
            positions: The table of positions.

        Returns:
            Logits of the next token, (B, K, V), and what the next step needs.
        """
        place = kept.own[0][0].shape[2]
        states = self.embeddings(nn.functional.embedding(ids, words), positions[place])
        own = []
        for layer, before, memory in zip(self.layers, kept.own, kept.memory, strict=True):
            single = states.flatten(0, 1)[:, None]  # (B K, 1, H): each hypothesis sees its own past
            new = layer.slf_attn.att.keys_values(single)
            both = tuple(torch.cat(pair, 2) for pair in zip(before, new, strict=True))
            own.append((both[0], both[1]))
            states = layer.slf_attn(single, own[-1], None).view_as(states)
            states = layer.enc_attn(states, memory, kept.mask)  # the hypotheses are queries to one memory
            states = layer.feed_forward(states)
        logits: Tensor = self.classifier.cls(states, words)
        return logits, Kept(tuple(own), kept.memory, kept.mask)
