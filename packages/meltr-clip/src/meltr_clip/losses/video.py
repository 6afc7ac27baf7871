"""The losses of VideoMAE: classes, reconstruction of hidden tubes, and consistency of a clip and a part of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from meltr.video.draws import uniform
from meltr.video.losses import cross_entropy
from meltr_clip.losses.draws import draw_box
from meltr_clip.model.videomae import VideoTower, tube_mask

LOSSES = ("label", "consistency", "reconstruction")
"""Losses that `video_losses` computes."""


class _Passes:
    def __init__(self, model: VideoTower, video: Tensor, answer: Tensor, hidden: Tensor, box: Tensor) -> None:
        self.model, self.answer, self.hidden, self.box = model, answer, hidden, box
        self.pictures = model.pictures(video)

    @cached_property
    def features(self) -> Tensor:
        return self.model.features(self.pictures)

    def label(self) -> Tensor:
        return cross_entropy(self.model.classes(self.features), self.answer)

    def consistency(self) -> Tensor:
        return self.model.disagreement(self.pictures, self.features, self.box)

    def reconstruction(self) -> Tensor:
        return self.model.reconstruction(self.pictures, self.hidden)


def video_losses(
    model: VideoTower,
    video: Tensor,
    answer: Tensor,
    *,
    wanted: Sequence[str],
    mask_ratio: float = 0.9,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Compute the losses named in `wanted`, each 0-dim, in that order.

    Args:
        model: The model.
        video: Bytes (B, T, 3, S, S).
        answer: Classes, (B,); -100 for none.
        wanted: Names from `LOSSES`.
        mask_ratio: Share of the tubes that are hidden.
        generator: Source of randomness; None: torch's global one. All losses draw the same numbers from it, whichever
            are wanted.

    Raises:
        ValueError: If a name is unknown.
    """
    steps, places = model.grid
    hidden = tube_mask(uniform((len(video), places), video.device, generator), steps, mask_ratio)
    box = draw_box(len(video), video.device, generator)
    passes = _Passes(model, video, answer, hidden, box)
    makers: dict[str, Callable[[], Tensor]] = {name: getattr(passes, name) for name in LOSSES}
    unknown = [name for name in wanted if name not in makers]
    if unknown:
        raise ValueError(f"unknown losses {unknown}: choose from {LOSSES}")
    return {name: makers[name]() for name in wanted}
