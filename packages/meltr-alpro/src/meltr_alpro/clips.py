"""Clips and texts as tensors: frames by number, scaled without keeping the aspect ratio, and token ids."""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from meltr.video import Encoder, Item, Labels
from meltr.video.frames.pictures import resize
from meltr.video.frames.sampling import Indices, Sampler, middles, random_in_segments
from meltr.video.frames.source import Frames, FrameSource
from meltr.video.text.wordpiece import Tokenizer


def strided(total: int, count: int) -> Indices:
    """Return i floor(total / count) for i = 0 ... count - 1, as the released evaluation (all 0 in a shorter video)."""
    return tuple(i * (total // count) for i in range(count))


def distinct(total: int, count: int) -> Indices:
    """Return `count` distinct random frames in order, from Python's generator; in a shorter video frames repeat."""
    return tuple(sorted(random.sample(range(total), count))) if total >= count else random_in_segments(total, count)


EVALUATION: Mapping[str, Sampler] = {"middles": middles, "released": strided}
"""Name -> sampler of evaluation."""


def scaled(frames: Frames, size: int) -> Frames:
    """Return frames (T, H, W, 3) as (T, size, size, 3); the aspect ratio may change, as in the released code."""
    return np.stack([resize(frame, size, size) for frame in frames])


class AlproEncoder(Encoder):
    """Turns items into the columns ``video``, ``ids`` and ``answer``, with clips (T, S, S, 3) by key."""

    def __init__(self, tokenizer: Tokenizer, labels: Labels, training: FrameSource, evaluation: FrameSource) -> None:
        super().__init__(tokenizer, labels)
        self._training, self._evaluation = training, evaluation

    def video(self, item: Item, seed: int | None = None) -> dict[str, Tensor]:
        """Return ``video`` (T, 3, S, S), bytes; only training clips may be random."""
        clips = self._training if seed is None else self._evaluation
        return {"video": torch.from_numpy(clips.frames(item.media)).permute(0, 3, 1, 2)}

    def text(self, item: Item, caption: str = "") -> dict[str, Tensor]:
        """Return ``ids`` (L,) of the question or the caption."""
        text = item.question or "" if self.labels.task == "qa" else caption
        return {"ids": self.tokenizer.encode([text])[0]}
