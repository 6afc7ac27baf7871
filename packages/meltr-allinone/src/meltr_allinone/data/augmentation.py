"""Augment the frames of a training clip, all in the same way, with draws from Python's and torch's generators.

The released fine-tuning names a RandAugment transform, but it has no effect on videos: only a crop at one random place
per clip remains (``crop``). The co-training of All-in-one-B+ used pytorchvideo's factory (``strong``): RandAugment, a
random size, a random crop and a horizontal flip.
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
"""Settings of RandAugment: operations per clip, probability of each, and strength on a scale of 10."""

LARGEST = 1.25
"""Largest size before cropping relative to the smallest: 336 pixels to 268."""

BINS = 10
"""Number of RandAugment's strength levels above 0."""


def augment(video: Tensor, size: int, kind: Augmentation) -> Tensor:
    """Return an augmented clip (T, 3, size, size) of bytes, made from larger squares (T, 3, R, R).

    Args:
        video: Bytes, R at least `size`.
        size: Side of the crop.
        kind: ``none`` (the centre), ``crop`` (one random place for all frames), or ``strong``. ``strong`` flips half of
            the clips, so do not use it with texts that distinguish left and right.
    """
    if kind == "none":
        return centre_crop(video, size)
    if kind == "crop":
        return random_crop(video, size)
    video = _resized(_rand_augment(video), random.randint(video.shape[-1], round(LARGEST * video.shape[-1])))
    video = random_crop(video, size)
    return video.flip(-1) if random.random() < 0.5 else video


def random_crop(video: Tensor, size: int) -> Tensor:
    """Return a crop (..., size, size) of a video (..., H, W), at a uniformly random place."""
    top, left = (random.randint(0, side - size) for side in video.shape[-2:])
    return video[..., top : top + size, left : left + size]


def _rand_augment(video: Tensor) -> Tensor:
    for _ in range(OPERATIONS):
        if random.random() < PROBABILITY:
            video = _operation()(video)
    return video


@cache
def _operation() -> Any:
    """Return RandAugment with one random operation for clips. torchvision is imported here because that takes long."""
    from torchvision.transforms.v2 import InterpolationMode, RandAugment

    return RandAugment(1, MAGNITUDE, BINS + 1, interpolation=InterpolationMode.BILINEAR)


def _resized(video: Tensor, side: int) -> Tensor:
    grown = F.interpolate(video.float(), size=(side, side), mode="bilinear", align_corners=False)
    return grown.round_().clamp_(0, 255).to(torch.uint8)
