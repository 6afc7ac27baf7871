"""What training does to the frames of a clip: the same to all of them, drawn from Python's and torch's generators.

The released fine-tuning names a RandAugment transform, which has no effect on videos: it crops at one random place a
clip and nothing else (``crop``). The co-training of All-in-one-B+ used pytorchvideo's factory (``strong``):
RandAugment, another random size, a random crop and a mirror image.
"""

from __future__ import annotations

import random
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from meltr_allinone.data.transforms import centre_crop

Augmentation = Literal["none", "crop", "strong"]

OPERATIONS, PROBABILITY, MAGNITUDE = 2, 0.5, 9
"""Of RandAugment: operations a clip, the probability of each, its strength of 10."""

LARGEST = 1.25
"""Largest size before cropping, relative to the smallest: 336 pixels to 268."""

BINS = 10
"""Steps of RandAugment's strength above 0."""


def augment(video: Tensor, size: int, kind: Augmentation) -> Tensor:
    """Return a clip (T, 3, size, size) of bytes made from larger squares (T, 3, R, R).

    Args:
        video: Bytes, R at least `size`.
        size: Side of the crop.
        kind: ``none`` (the centre), ``crop`` (one random place for all frames), or ``strong``. ``strong`` mirrors half
            of the clips: not for texts that tell left from right.
    """
    if kind == "none":
        return centre_crop(video, size)
    if kind == "crop":
        return random_crop(video, size)
    video = _resized(_rand_augment(video), random.randint(video.shape[-1], round(LARGEST * video.shape[-1])))
    video = random_crop(video, size)
    return video.flip(-1) if random.random() < 0.5 else video


def random_crop(video: Tensor, size: int) -> Tensor:
    """Return (..., size, size) of a video (..., H, W), at a place uniform among all."""
    top, left = (random.randint(0, side - size) for side in video.shape[-2:])
    return video[..., top : top + size, left : left + size]


def _rand_augment(video: Tensor) -> Tensor:
    for _ in range(OPERATIONS):
        if random.random() < PROBABILITY:
            video = _operation()(video)
    return video


@cache
def _operation() -> Any:
    """Return one random operation of RandAugment on clips; torchvision takes long to import."""
    from torchvision.transforms.v2 import InterpolationMode, RandAugment

    return RandAugment(1, MAGNITUDE, BINS + 1, interpolation=InterpolationMode.BILINEAR)


def _resized(video: Tensor, side: int) -> Tensor:
    grown = F.interpolate(video.float(), size=(side, side), mode="bilinear", align_corners=False)
    return grown.round_().clamp_(0, 255).to(torch.uint8)
