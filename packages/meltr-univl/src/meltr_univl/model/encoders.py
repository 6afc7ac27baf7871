"""The three encoders of UniVL (Luo et al., arXiv 2002.06353, section 3.1): for texts, for frames, and for both."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from transformers.models.bert.modeling_bert import BertEmbeddings

from meltr.video.text.bert import Pooler
from meltr_univl.model.config import EPS, ModelConfig
from meltr_univl.model.layers import EncoderLayers, bert_config


class TextEncoder(nn.Module):
    """BERT: token ids (B, W) to states (B, W, H). All token types are 0.

    Args:
        config: Sizes.
        pooler: Build the pooler. It is unused, but the published file has it.
    """

    def __init__(self, config: ModelConfig, *, pooler: bool = False) -> None:
        super().__init__()
        self.embeddings = BertEmbeddings(bert_config(config))
        self.encoder = EncoderLayers(config, config.text_layers)
        self.pooler = Pooler(config.width) if pooler else None

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the states of the last layer."""
        return cast(Tensor, self.encoder(self.embeddings(ids), mask))


class FrameEmbeddings(nn.Module):
    """A linear layer, positions, LayerNorm, dropout."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Linear(config.video_dim, config.width)
        self.position_embeddings = nn.Embedding(config.visual_positions, config.width)
        self.LayerNorm = nn.LayerNorm(config.width, eps=EPS)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, frames: Tensor) -> Tensor:
        """Map normalised frames (B, F, D) to (B, F, H)."""
        states = self.word_embeddings(frames) + self.position_embeddings.weight[: frames.shape[1]]
        return cast(Tensor, self.dropout(self.LayerNorm(states)))


class VisualEncoder(nn.Module):
    """Encode normalised frames (B, F, D) to states (B, F, H).

    Args:
        config: Sizes.
        pooler: Build the pooler. It is unused, but the published file has it.
    """

    def __init__(self, config: ModelConfig, *, pooler: bool = False) -> None:
        super().__init__()
        self.embeddings = FrameEmbeddings(config)
        self.encoder = EncoderLayers(config, config.visual_layers)
        self.pooler = Pooler(config.width) if pooler else None

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        """Return the states of the last layer."""
        return cast(Tensor, self.encoder(self.embeddings(frames), mask))


class CrossEmbeddings(nn.Module):
    """Add positions and types to states, then apply LayerNorm and dropout."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.position_embeddings = nn.Embedding(config.cross_positions, config.width)
        self.token_type_embeddings = nn.Embedding(2, config.width)
        self.LayerNorm = nn.LayerNorm(config.width, eps=EPS)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, text: Tensor, video: Tensor) -> Tensor:
        """Map (B, W, H) and (B, F, H) to (B, W + F, H). The first frame has position W, regardless of padding."""
        words, length = text.shape[1], text.shape[1] + video.shape[1]
        counts = torch.where(torch.arange(2, device=text.device) == 0, words, length - words)  # made on the device
        types = self.token_type_embeddings.weight.repeat_interleave(counts, 0, output_size=length)
        states = torch.cat([text, video], 1) + self.position_embeddings.weight[:length] + types
        return cast(Tensor, self.dropout(self.LayerNorm(states)))


class CrossEncoder(nn.Module):
    """Encode the states of texts and frames jointly.

    Args:
        config: Sizes.
        pooler: Build the pooler, which matching and sentiment scores read.
    """

    def __init__(self, config: ModelConfig, *, pooler: bool = True) -> None:
        super().__init__()
        self.embeddings = CrossEmbeddings(config)
        self.encoder = EncoderLayers(config, config.cross_layers)
        self.pooler = Pooler(config.width) if pooler else None

    def forward(self, text: Tensor, video: Tensor, mask: Tensor) -> Tensor:
        """Return the states of the last layer, (B, W + F, H); `mask` is (B, W + F)."""
        return cast(Tensor, self.encoder(self.embeddings(text, video), mask))
