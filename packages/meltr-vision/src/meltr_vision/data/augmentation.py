"""Random crops and flips of a batch, by index arithmetic."""

from __future__ import annotations

import torch
from torch import Tensor


def crop_and_flip(pixels: Tensor, *, top: Tensor, left: Tensor, flip: Tensor, padding: int, mode: str) -> Tensor:
    """Pad each image by `padding`, crop a window of the original size at (top, left), and flip some of them.

    This is one gather for the whole batch, and nothing is padded in memory.

    Args:
        pixels: (B, C, S, S).
        top: (B,), first row of the window in the padded image, 0 to 2 padding.
        left: (B,), first column, 0 to 2 padding.
        flip: (B,) bool, True: flip horizontally after the crop.
        padding: Pixels on each side; below S for ``reflect``.
        mode: ``zeros`` or ``reflect`` (without repeating the edge).
    """
    count, channels, size, _ = pixels.shape
    span = torch.arange(size, device=pixels.device)
    rows = span + (top - padding)[:, None]
    columns = span + (left - padding)[:, None]
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    inside = None
    if mode == "reflect":
        rows, columns = (size - 1 - (size - 1 - each.abs()).abs() for each in (rows, columns))
    elif padding:
        valid_rows, valid_columns = ((each >= 0) & (each < size) for each in (rows, columns))
        inside = (valid_rows[:, :, None] & valid_columns[:, None, :])[:, None]
        rows, columns = rows.clamp(0, size - 1), columns.clamp(0, size - 1)
    places = (rows[:, :, None] * size + columns[:, None, :]).view(count, 1, -1).expand(-1, channels, -1)
    picked = pixels.reshape(count, channels, -1).gather(2, places).view_as(pixels)
    return picked if inside is None else picked * inside
