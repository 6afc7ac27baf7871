"""Sizes of an ALPRO model. This module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

AttentionKernel = Literal["fused", "eager"]


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and constants; the defaults are those of the published checkpoints.

    Args:
        width: D, of both encoders.
        depth: Blocks of the video encoder.
        heads: Attention heads of the video encoder.
        mlp_ratio: Hidden units of the video encoder's MLPs, relative to the width.
        image_size: S, side of a frame in pixels.
        patch: Side of a patch in pixels.
        frames: T, frames per clip.
        layers: Layers of BERT.
        fusion_from: Number of layers that read the text alone; the others read text and video.
        text_heads: Attention heads of BERT.
        feedforward: Hidden units of BERT's MLPs.
        vocabulary: V, tokens.
        text_positions: Tokens of the longest text.
        token_types: Rows of the token type table; only the first is used.
        shared: P, width of the space in which texts and videos are compared.
        entities: E, entities of the loss ``pem``.
        temperature: Initial temperature, by which similarities are divided. It is learned.
        dropout: Dropout of BERT.
        drop_path: Stochastic depth of the last block of the video encoder; it grows linearly from 0.
        video_eps: LayerNorm epsilon of the video encoder.
        text_eps: LayerNorm epsilon of BERT.
        pixel_mean: Mean of each channel, for pixels in [0, 1].
        pixel_std: Standard deviation of each channel.
        spread: Standard deviation of initial weights.
        attention: ``fused`` (scaled dot product attention) or ``eager``.

    Raises:
        ValueError: If the sizes do not fit together.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    image_size: int = 224
    patch: int = 16
    frames: int = 16
    layers: int = 12
    fusion_from: int = 6
    text_heads: int = 12
    feedforward: int = 3072
    vocabulary: int = 30522
    text_positions: int = 512
    token_types: int = 2
    shared: int = 256
    entities: int = 1000
    temperature: float = 0.07
    dropout: float = 0.1
    drop_path: float = 0.1
    video_eps: float = 1e-6
    text_eps: float = 1e-12
    pixel_mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    pixel_std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    spread: float = 0.02
    attention: AttentionKernel = "fused"

    def __post_init__(self) -> None:
        if self.image_size % self.patch:
            raise ValueError(f"image_size={self.image_size} is not a multiple of patch={self.patch}")
        if self.width % self.heads or self.width % self.text_heads:
            raise ValueError(
                f"width={self.width} is not a multiple of heads={self.heads} and text_heads={self.text_heads}"
            )
        if not 0 < self.fusion_from < self.layers:
            raise ValueError(f"fusion_from={self.fusion_from} must be between 0 and layers={self.layers}")

    @property
    def side(self) -> int:
        """Patches on a side of a frame."""
        return self.image_size // self.patch

    @property
    def patches(self) -> int:
        """N, patches per frame."""
        return self.side**2

    def without_noise(self) -> ModelConfig:
        """Return a copy without dropout or stochastic depth."""
        return replace(self, dropout=0.0, drop_path=0.0)


BASE = ModelConfig()
"""The published model: 236 million parameters with the answers of MSVD-QA."""

TINY = ModelConfig(
    width=96,
    depth=2,
    heads=4,
    mlp_ratio=2.0,
    image_size=64,
    frames=4,
    layers=4,
    fusion_from=2,
    text_heads=4,
    feedforward=192,
    vocabulary=1000,
    text_positions=64,
    shared=64,
    entities=32,
    dropout=0.0,
    drop_path=0.0,
    spread=0.06,
)
"""A small model for synthetic samples and tests. Its initial weights are scaled up for the smaller width."""
