"""The image pipeline of evaluation: resize to 1.2 times the side, crop the centre, normalise (backend "a100").

Resizing and cropping work on bytes, once per video. Bytes are copied to the device, at a quarter of the size of floats,
and are normalised there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from meltr.devices import constant
from meltr.video.frames.pictures import resize
from meltr.video.frames.source import Frames

Normalisation = Literal["imagenet", "inception", "kinetics"]

NORMALISATIONS: Mapping[Normalisation, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "kinetics": ((0.45, 0.45, 0.45), (0.225, 0.225, 0.225)),
}
"""Mean and standard deviation of red, green and blue: those of the released fine-tuning, of the timm weights that
All-in-one started from, and of its co-training on videos and images (backend "v100")."""


def resized_side(size: int) -> int:
    """Return the side that pictures are resized to before a crop of `size` pixels: int(1.2 size)."""
    return int(1.2 * size)


def resized_squares(frames: Frames, size: int) -> Frames:
    """Resize frames (T, H, W, 3) to (T, R, R, 3), R = `resized_side`. As in the original, the aspect ratio may change.

    Args:
        frames: Pictures of any size.
        size: Side of the later crop.
    """
    side = resized_side(size)
    return np.stack([resize(frame, side, side) for frame in frames])


def channels_first(frames: Frames) -> Tensor:
    """Return frames (T, H, W, 3) as (T, 3, H, W)."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2)


def centre_crop(video: Tensor, size: int) -> Tensor:
    """Return the centre (..., size, size) of a video (..., H, W). As in torchvision, half pixels round to even."""
    top, left = (round((side - size) / 2) for side in video.shape[-2:])
    return video[..., top : top + size, left : left + size]


def normalised(video: Tensor, kind: Normalisation = "imagenet") -> Tensor:
    """Return bytes (..., 3, H, W) as normalised float32. A floating-point video is returned as it is.

    Args:
        video: Bytes, or a video that is already normalised.
        kind: A key of `NORMALISATIONS`.
    """
    if video.is_floating_point():
        return video
    rows = (constant(row, video.device, torch.float32) for row in NORMALISATIONS[kind])
    mean, deviation = (row.view(3, 1, 1) for row in rows)
    return video.float().div_(255).sub_(mean).div_(deviation)
