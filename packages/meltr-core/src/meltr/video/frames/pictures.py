"""Resizing (Pillow) and padding (numpy) of pictures, as in published pipelines. Imports no torch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from meltr.video.frames.media import require
from meltr.video.frames.source import Frames

Picture = npt.NDArray[np.uint8]
"""One picture, shape (H, W, 3), RGB, 0..255."""


def resize(picture: Picture, height: int, width: int) -> Picture:
    """Resize with Pillow's bilinear filter, which averages when it shrinks a picture."""
    if picture.shape[:2] == (height, width):
        return picture
    image = require("PIL.Image")
    resized = image.fromarray(picture).resize((width, height), image.Resampling.BILINEAR)
    return np.asarray(resized)


def shrink_short_side(picture: Picture, size: int | None) -> Picture:
    """Shrink so that the shorter side has `size` pixels; a smaller picture, or `size` None, is returned unchanged."""
    height, width = picture.shape[:2]
    short = min(height, width)
    if size is None or short <= size:
        return picture
    return resize(picture, round(height * size / short), round(width * size / short))


def pad_to_square(picture: Picture) -> Picture:
    """Add floor((long - short) / 2) black pixels at both ends of the shorter side.

    If the difference is odd, the result is one pixel short of square, as in the code published with Fu et al., arXiv
    2111.12681.
    """
    height, width = picture.shape[:2]
    vertical, horizontal = max(0, width - height) // 2, max(0, height - width) // 2
    return np.pad(picture, ((vertical, vertical), (horizontal, horizontal), (0, 0)))


def padded_squares(frames: Frames, size: int) -> Frames:
    """Return frames (T, H, W, 3) as (T, size, size, 3): padded to squares, then resized."""
    return np.stack([resize(pad_to_square(frame), size, size) for frame in frames])
