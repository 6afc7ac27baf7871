"""Sizes of a VIOLET model. This module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

AttentionKernel = Literal["fused", "eager"]


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and constants; the defaults are those of the published checkpoint.

    Args:
        swin_width: Channels after the patch embedding; they double with each stage.
        swin_depths: Blocks of each stage.
        swin_heads: Attention heads of each stage.
        window: Attention window (frames, rows, columns).
        patch: Kernel of the patch embedding; it steps one frame at a time, so that frame t sees frames t and t + 1.
        mlp_ratio: Hidden units of Swin's MLPs, relative to the width.
        stochastic_depth: Drop probability of the last Swin block; it grows linearly from 0.
        pixel_mean: Mean of each channel, for pixels in [0, 1].
        pixel_std: Standard deviation of each channel.
        max_frames: Rows of the frame embedding table: frames of the longest clip.
        positions: Rows of the position embedding table: one for the cls token of a frame and one for each of its cells.
        width: Width of the transformer; must equal the width of Swin's last stage.
        layers: Layers of the cross-modal transformer.
        heads: Attention heads of the cross-modal transformer.
        feedforward: Hidden units of the MLPs of the cross-modal transformer.
        vocabulary: Size of the vocabulary.
        text_positions: Tokens of the longest text.
        token_types: Rows of the token type table; only the first is used.
        dropout: Dropout of the text embedding, the transformer, its attention, and the heads.
        codes: Size of the codebook that masked visual modelling predicts from.
        text_eps: LayerNorm epsilon of the text branch and the transformer.
        video_eps: LayerNorm epsilon of the video branch.
        start: Initialisation: ``bert`` (standard deviation 0.02 everywhere, as in BERT and Swin), or ``scaled`` by the
            number of inputs, from which narrow models learn faster.
        attention: Attention of both branches: ``fused`` (PyTorch's scaled dot product attention), or ``eager``
            (products and softmax, as in the original).

    Raises:
        ValueError: If the sizes do not fit together.
    """

    swin_width: int = 96
    swin_depths: tuple[int, ...] = (2, 2, 18, 2)
    swin_heads: tuple[int, ...] = (3, 6, 12, 24)
    window: tuple[int, int, int] = (8, 7, 7)
    patch: tuple[int, int, int] = (2, 4, 4)
    mlp_ratio: float = 4.0
    stochastic_depth: float = 0.2
    pixel_mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    pixel_std: tuple[float, ...] = (0.229, 0.224, 0.225)
    max_frames: int = 6
    positions: int = 197
    width: int = 768
    layers: int = 12
    heads: int = 12
    feedforward: int = 3072
    vocabulary: int = 30522
    text_positions: int = 512
    token_types: int = 2
    dropout: float = 0.1
    codes: int = 8192
    text_eps: float = 1e-12
    video_eps: float = 1e-5
    start: Literal["bert", "scaled"] = "bert"
    attention: AttentionKernel = "fused"

    def __post_init__(self) -> None:
        if len(self.swin_depths) != len(self.swin_heads) or not self.swin_depths:
            raise ValueError(f"swin_depths={self.swin_depths} and swin_heads={self.swin_heads} differ in length")
        last = self.swin_width << (len(self.swin_depths) - 1)
        if self.width != last:
            raise ValueError(f"width={self.width} must be {last}, the width of Swin's last stage")
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is not a multiple of heads={self.heads}")

    @property
    def cell(self) -> int:
        """Pixels on a side of the square that one video token covers: 32 with four stages."""
        return self.patch[1] << (len(self.swin_depths) - 1)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the rows and columns of cells in a picture of `height` x `width` pixels."""
        return -(-height // self.cell), -(-width // self.cell)

    def tokens(self, frames: int, height: int, width: int) -> int:
        """Return the number of video tokens of a clip: for every frame, one cls token and one token per cell."""
        rows, columns = self.grid(height, width)
        return frames * (1 + rows * columns)

    def without_noise(self) -> ModelConfig:
        """Return a copy without dropout or stochastic depth."""
        return replace(self, dropout=0.0, stochastic_depth=0.0)


BASE = ModelConfig()
"""The published model: 198 million parameters."""

TINY = ModelConfig(
    swin_width=12,
    swin_depths=(1, 1, 2, 1),
    swin_heads=(1, 2, 4, 4),
    window=(4, 4, 4),
    width=96,
    layers=2,
    heads=4,
    feedforward=192,
    vocabulary=1000,
    text_positions=64,
    codes=512,
    stochastic_depth=0.0,
    dropout=0.0,
    start="scaled",
)
"""A small model for synthetic samples and tests; change sizes with `dataclasses.replace`."""
