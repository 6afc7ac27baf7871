"""Shifted-window attention in three dimensions (Liu et al. 2022) on PyTorch's fused attention kernels."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.video.swin_transformer import ShiftedWindowAttention3d

SEPARATED = -100.0
"""Added to the logits between tokens that a shift has brought into one window from different regions."""

Triple = tuple[int, int, int]


class WindowAttention(ShiftedWindowAttention3d):  # type: ignore[misc]
    """torchvision's attention with the same parameters and results, without storing the attention probabilities.

    Position bias and the separation of shifted regions become the additive mask of
    ``torch.nn.functional.scaled_dot_product_attention``.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, H, W, C) to the same shape."""
        batch, *size, width = x.shape
        window, shift = self._fitted(size)
        padding = [-length % side for length, side in zip(size, window, strict=True)]
        x = F.pad(x, (0, 0, 0, padding[2], 0, padding[1], 0, padding[0]))
        padded = (x.shape[1], x.shape[2], x.shape[3])
        shifted = any(shift)
        if shifted:
            x = x.roll([-step for step in shift], dims=(1, 2, 3))
        windows = partition(x, window)
        q, k, v = self.qkv(windows).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mask = self._bias(window)
        if shifted:  # every window of a clip has its own mask, so windows are folded into the head axis
            apart = separation(padded, window, shift, x.device)[:, None]
            mask = (mask + apart.to(mask.dtype)).flatten(0, 1)
            q, k, v = (each.reshape(batch, -1, *each.shape[2:]) for each in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.to(q.dtype)[None])
        attended = attended.reshape(len(windows), self.num_heads, -1, width // self.num_heads)
        x = merge(self.proj(attended.transpose(1, 2).flatten(2)), padded, window, batch)
        if shifted:
            x = x.roll(list(shift), dims=(1, 2, 3))
        return x[:, : size[0], : size[1], : size[2]].contiguous()

    def _fitted(self, size: list[int]) -> tuple[Triple, Triple]:
        """Return window and shift. Along an axis where the map fits into the window: the map's length and no shift."""
        pairs = [
            (length, 0) if length <= side else (side, step)
            for length, side, step in zip(size, self.window_size, self.shift_size, strict=True)
        ]
        (t, dt), (h, dh), (w, dw) = pairs
        return (t, h, w), (dt, dh, dw)

    def _bias(self, window: Triple) -> Tensor:
        """Return the relative position bias, (heads, N, N). A shrunk window takes the first N rows and columns."""
        bias: Tensor = self.get_relative_position_bias(list(window))
        return bias[0]


def partition(x: Tensor, window: Triple) -> Tensor:
    """Cut (B, T, H, W, C) into windows, (B nW, N, C). Each side must be a multiple of the window's side."""
    batch, *size, width = x.shape
    t, h, w = window
    cut = x.view(batch, size[0] // t, t, size[1] // h, h, size[2] // w, w, width)
    return cut.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, math.prod(window), width)


def merge(windows: Tensor, size: Triple, window: Triple, batch: int) -> Tensor:
    """Undo `partition`: (B nW, N, C) to (B, T, H, W, C)."""
    counts = [length // side for length, side in zip(size, window, strict=True)]
    return windows.view(batch, *counts, *window, -1).permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(batch, *size, -1)


def separation(size: Triple, window: Triple, shift: Triple, device: torch.device) -> Tensor:
    """Return the mask (nW, N, N): -100 between tokens of a window that come from different regions, 0 elsewhere."""
    region = torch.zeros(1, *size, 1, device=device)
    for axis, (length, side, step) in enumerate(zip(size, window, shift, strict=True)):
        if step:
            place = torch.arange(length, device=device)
            third = (place >= length - side).float() + (place >= length - step).float()
            shape = [1, 1, 1, 1, 1]
            shape[1 + axis] = length
            region = 3 * region + third.view(shape)
    of_window = partition(region, window)[..., 0]
    return SEPARATED * (of_window[:, :, None] != of_window[:, None]).float()
