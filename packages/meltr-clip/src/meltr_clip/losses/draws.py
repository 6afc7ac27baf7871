"""The random choices of a batch: hidden tokens, wrong pairs, and the view of each clip.

All are drawn from one generator in a fixed order that does not depend on the losses, and their number depends on shapes
only. So a loss has the same value alone and among others, and a replayed generator gives the same losses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from meltr.devices import constant
from meltr.video.draws import uniform
from meltr.video.text.masking import PROBABILITY, choose, given_one

SMALLEST = 0.6
"""Smallest side of a view, relative to the frame."""


@dataclass(frozen=True)
class Words:
    """The tokens that hide others.

    Args:
        vocabulary: V, the number of tokens.
        special: Tokens that are never hidden: padding, ends, and so on.
        mask: The token that hides others; None: the tokenizer has none (CLIP), and a random token does.
    """

    vocabulary: int
    special: tuple[int, ...] = ()
    mask: int | None = None


@dataclass(frozen=True)
class Draws:
    """The random choices of a batch.

    Args:
        hidden: Token ids with hidden tokens, (B, L).
        chosen: True where a token is hidden, (B, L).
        chances: Uniform numbers that choose the wrong text of each clip, then the wrong clip of each text, (2, B).
        box: Part of each clip that its view shows: side, top, left, (B, 3).
        frames: Numbers of the frames of each view in ascending order, (B, T').
    """

    hidden: Tensor
    chosen: Tensor
    chances: Tensor
    box: Tensor
    frames: Tensor


def draw(ids: Tensor, frames: int, words: Words, *, generator: torch.Generator | None) -> Draws:
    """Draw the random choices of a batch of texts and clips.

    Args:
        ids: Token ids (B, L).
        frames: T, frames of a clip; the view has half of them, at least one.
        words: The tokens.
        generator: Source of randomness; None: torch's global one.
    """
    size, device = len(ids), ids.device
    able = ~torch.isin(ids, constant(tuple(words.special), device))
    chosen = choose(able, generator=generator)
    chosen = given_one(able, chosen, uniform((size, 1), device, generator), probability=PROBABILITY)
    drawn = (uniform(ids.shape, device, generator) * words.vocabulary).long().clamp_max(words.vocabulary - 1)
    hidden = torch.where(chosen, drawn if words.mask is None else words.mask, ids)
    chances = uniform((2, size), device, generator)
    box = draw_box(size, device, generator)
    picked = uniform((size, frames), device, generator).argsort(1)[:, : max(1, frames // 2)].sort(1).values
    return Draws(hidden, chosen, chances, box, picked)


def draw_box(size: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Draw the part of each clip that a view shows: its side from `SMALLEST` to 1, and its place; (B, 3)."""
    drawn = uniform((size, 3), device, generator)
    return torch.cat([SMALLEST + (1 - SMALLEST) * drawn[:, :1], drawn[:, 1:]], 1)


def picked_frames(clips: Tensor, frames: Tensor) -> Tensor:
    """Return some frames of each clip, (B, T', ...).

    Args:
        clips: (B, T, ...).
        frames: Their numbers, (B, T').
    """
    return clips[torch.arange(len(clips), device=clips.device)[:, None], frames]


def wrong_pairs(scores: Tensor, same: Tensor, chances: Tensor) -> tuple[Tensor, Tensor]:
    """Choose a wrong column for each row, with the probability softmax of the scores of all wrong ones.

    Args:
        scores: (B, B).
        same: True for right pairs, (B, B).
        chances: Uniform in [0, 1), (B,).

    Returns:
        The columns, (B,), and whether the row has a wrong column at all, (B,).
    """
    there = ~same.all(1)
    likely = scores.float().masked_fill(same, float("-inf")).softmax(1).nan_to_num()
    last = (len(scores) - 1 - (~same).flip(1).int().argmax(1)).clamp_min(0)  # rounding may leave the sum short of 1
    chosen = (likely.cumsum(1) <= chances[:, None]).sum(1)
    return torch.minimum(chosen, last), there


def hidden_places(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Return the places of hidden tokens, (B, K), and which of them count, (B, K); K depends on L alone.

    K is 0.15 L, rounded up. Further hidden tokens of a text are not predicted, which happens to full texts alone.

    Args:
        chosen: True where a token is hidden, (B, L).
    """
    most = -(-chosen.shape[1] * 15 // 100)
    counts, places = chosen.int().topk(most, dim=1)
    return places, counts.bool()
