"""Pictures as the towers want them: bytes, scaled and normalised on the device, and random views of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Normalisation(nn.Module):
    """Rescaling and normalisation of an image processor, (factor x - mean) / std for each colour.

    Args:
        images: An image processor of transformers.
        patches: Whether pictures are cut into patches, whose last dimension is (p, p, colour).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, images: Any, *, patches: bool) -> None:
        super().__init__()
        self.patches = patches
        self.factor = float(images.rescale_factor) if images.do_rescale else 1.0
        for name, neutral in (("mean", 0.0), ("std", 1.0)):
            value = getattr(images, f"image_{name}") if images.do_normalize else [neutral] * 3
            self.register_buffer(name, torch.tensor(value, dtype=torch.float32), persistent=False)

    def forward(self, pixels: Tensor, dtype: torch.dtype) -> Tensor:
        """Return pictures for a tower.

        Args:
            pixels: Bytes, (..., 3, S, S), or patches (..., N, p p 3).
            dtype: Type of the result.
        """
        scaled = pixels.to(dtype) * self.factor
        mean, std = self.mean.to(dtype), self.std.to(dtype)
        if self.patches:
            split: Tensor = scaled.unflatten(-1, (-1, 3))
            return ((split - mean) / std).flatten(-2)
        return (scaled - mean[:, None, None]) / std[:, None, None]


def cropped(pictures: Tensor, box: Tensor) -> Tensor:
    """Return a square part of each clip, scaled back to its size (bilinear); all frames of a clip have the same part.

    Args:
        pictures: (B, T, 3, S, S), floating point.
        box: Side of the part relative to S, then its place, each in [0, 1]: side, top, left; (B, 3).
    """
    count = pictures.shape[1]
    side, top, left = box.to(pictures.dtype).unbind(1)
    zero = torch.zeros_like(side)
    # In grid_sample's coordinates from -1 to 1, the centre lies at most 1 - side from the middle.
    rows = [torch.stack([side, zero, (1 - side) * (2 * left - 1)], 1)]
    rows.append(torch.stack([zero, side, (1 - side) * (2 * top - 1)], 1))
    grid = F.affine_grid(torch.stack(rows, 1), [len(box), *pictures.shape[2:]], align_corners=False)
    flat = F.grid_sample(
        pictures.flatten(0, 1), grid.repeat_interleave(count, 0), padding_mode="border", align_corners=False
    )
    parts: Tensor = flat.unflatten(0, (-1, count))
    return parts


def inside(shapes: Tensor, box: Tensor, length: int) -> Tensor:
    """Return which patches of each frame lie in a part of it, (B, T, N); those of padding do not.

    Args:
        shapes: Rows and columns of patches, (B, T, 2).
        box: Side of the part relative to the frame, at least 0.5, then its place: side, top, left; (B, 3).
        length: N, patches with padding.
    """
    height, width = shapes[..., 0, None], shapes[..., 1, None]
    number = torch.arange(length, device=shapes.device)
    row, column = number // width, number % width
    side, top, left = (box[:, place, None, None] for place in range(3))
    kept = number < height * width
    for place, extent, start in ((row, height, top), (column, width, left)):
        centre = (place + 0.5) / extent - start * (1 - side)
        kept = kept & (centre >= 0) & (centre <= side)
    return kept
