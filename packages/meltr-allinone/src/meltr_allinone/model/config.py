"""Sizes of an All-in-one model. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

AttentionKernel = Literal["fused", "eager"]

ROLLED = 8
"""One eighth of a frame's tokens goes to the next frame, and one eighth to the one before."""


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and constants; the defaults are those of All-in-one-B.

    Args:
        width: D.
        depth: Blocks.
        heads: Attention heads.
        mlp_ratio: Hidden units of the MLPs, relative to the width.
        image_size: Side of a frame in pixels.
        patch: Side of a patch.
        distilled: A second class token of a frame, as in DeiT's distilled models; it then has no temporal embedding.
        frames: T, rows of the temporal embedding.
        text_length: L, rows of the table of text positions.
        vocabulary: V.
        shared: P, width of the space in which texts and videos are compared.
        dropout: After embeddings, attention projections and both layers of an MLP.
        drop_path: Stochastic depth of the last block; it grows linearly from 0.
        spread: Standard deviation of new weights.
        attention: ``fused`` (scaled dot product attention) or ``eager``.
        aligned_from: First video slot that takes part in word-patch alignment (2 in the DeiT variants: for the tiny one
            that leaves out a patch, as the public code does).
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    image_size: int = 224
    patch: int = 16
    distilled: bool = False
    frames: int = 3
    text_length: int = 40
    vocabulary: int = 30522
    shared: int = 512
    dropout: float = 0.1
    drop_path: float = 0.1
    spread: float = 0.02
    attention: AttentionKernel = "fused"
    aligned_from: int = 1

    def __post_init__(self) -> None:
        if self.image_size % self.patch or self.width % self.heads:
            raise ValueError(
                f"image_size={self.image_size}, patch={self.patch}, width={self.width}, heads={self.heads}: patches "
                "must fill the image, and heads the width"
            )
        if self.rolled < 1:
            raise ValueError(f"image_size={self.image_size}: token rolling needs {ROLLED} tokens a frame")

    @property
    def patches(self) -> int:
        """N, patches of a frame."""
        return (self.image_size // self.patch) ** 2

    @property
    def first_patch(self) -> int:
        """Class tokens of a frame: the slot of its first patch."""
        return 2 if self.distilled else 1

    @property
    def frame_tokens(self) -> int:
        """Tokens of a frame, l."""
        return self.first_patch + self.patches

    @property
    def rolled(self) -> int:
        """Slots that go to the next frame, and as many to the one before."""
        return self.frame_tokens // ROLLED

    def without_noise(self) -> ModelConfig:
        """Return the same sizes without dropout and stochastic depth."""
        return replace(self, dropout=0.0, drop_path=0.0)


BASE = ModelConfig()
"""All-in-one-B and -B+ (110 million parameters without the decoder of masked texts)."""

SMALL = ModelConfig(width=384, heads=6, distilled=True, aligned_from=2)
"""All-in-one-S, on a distilled DeiT."""

TI = ModelConfig(width=192, heads=3, aligned_from=2)
"""All-in-one-Ti."""

TINY = ModelConfig(
    width=96,
    depth=4,
    heads=4,
    mlp_ratio=2.0,
    image_size=64,
    text_length=16,
    shared=64,
    dropout=0.0,
    drop_path=0.0,
    spread=0.06,
)
"""A small model for miniatures and first tries; its weights start as large in proportion as those of a wide one."""

SIZES = {"base": BASE, "small": SMALL, "ti": TI, "tiny": TINY}
