"""Sizes of a UniVL model. This module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

AttentionKernel = Literal["fused", "eager"]

HIDDEN_KEY = -10_000.0
"""Added to the attention scores of masked keys. It is finite, so that a clip without frames attends evenly."""

EPS = 1e-12
"""Epsilon of every LayerNorm."""


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and constants; the defaults are those of the published model.

    Args:
        width: H.
        heads: Attention heads.
        feedforward: Hidden units of the feed-forward layers.
        text_layers: Layers of the text encoder.
        visual_layers: Layers of the visual encoder.
        cross_layers: Layers of the cross encoder.
        decoder_layers: Layers of the decoder.
        vocabulary: V.
        text_positions: Maximum number of tokens in a text or a caption.
        visual_positions: Maximum number of frames in a clip.
        cross_positions: Maximum number of tokens and frames together.
        video_dim: D, dimension of a feature vector.
        dropout: Dropout after embeddings, attention probabilities and both output layers.
        spread: Standard deviation of initial weights.
        attention: ``fused`` (scaled dot product attention) or ``eager``.
    """

    width: int = 768
    heads: int = 12
    feedforward: int = 3072
    text_layers: int = 12
    visual_layers: int = 6
    cross_layers: int = 2
    decoder_layers: int = 3
    vocabulary: int = 30522
    text_positions: int = 512
    visual_positions: int = 512
    cross_positions: int = 1024
    video_dim: int = 1024
    dropout: float = 0.1
    spread: float = 0.02
    attention: AttentionKernel = "fused"

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is not a multiple of heads={self.heads}")

    def without_noise(self) -> ModelConfig:
        """Return a copy without dropout."""
        return replace(self, dropout=0.0)


BASE = ModelConfig()
"""The published model: 199.5 million parameters."""

TINY = ModelConfig(
    width=96,
    heads=4,
    feedforward=192,
    text_layers=2,
    visual_layers=2,
    cross_layers=1,
    decoder_layers=2,
    text_positions=128,
    visual_positions=128,
    cross_positions=256,
    dropout=0.0,
    spread=0.06,
)
"""A small model for synthetic samples and first tries. Its initial weights are scaled up for the smaller width."""

SIZES = {"base": BASE, "tiny": TINY}
