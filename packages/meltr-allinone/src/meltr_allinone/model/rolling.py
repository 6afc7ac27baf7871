"""Temporal token rolling (Wang et al., arXiv 2203.07303, section 3.2): frames exchange tokens, without parameters."""

from __future__ import annotations

import torch
from torch import Tensor


def roll_tokens(video: Tensor, count: int) -> Tensor:
    """Take slots 1 ... `count` from the previous frame and the last `count` slots from the next frame, circularly.

    Slot 0, the class token, and the slots in between are unchanged.

    Args:
        video: (B, T, l, D).
        count: Number of slots, at least 1 and at most (l - 1) / 2.
    """
    before, after = video[:, :, 1 : count + 1], video[:, :, -count:]
    rest = video[:, :, count + 1 : -count]
    return torch.cat([video[:, :, :1], before.roll(1, 1), rest, after.roll(-1, 1)], 2)
