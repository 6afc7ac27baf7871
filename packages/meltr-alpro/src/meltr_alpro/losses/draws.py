"""The random choices of a batch: masked tokens, wrong pairs, and the region whose entities are predicted.

All are drawn from one generator in a fixed order that does not depend on the losses, and their number depends on shapes
only. So a loss has the same value alone and among others, and a replayed generator gives the same losses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from meltr.video.draws import uniform
from meltr.video.text.masking import MaskedTexts, choose, hide, normal_tokens
from meltr_alpro.model.config import ModelConfig

AREA = (0.3, 0.5)
"""Smallest and largest share of a region in the area of a frame."""

RATIO = (0.3, 3.33)
"""Smallest and largest ratio of a region's height to its width."""

TRIES = 16
"""Regions drawn per clip; the first that fits in the frame counts. None fits in about one clip of a hundred million."""


@dataclass(frozen=True)
class Draws:
    """The random choices of a batch.

    Args:
        masked: Texts with masked tokens, (B, L).
        chances: Uniform numbers in [0, 1) that choose the wrong video of each text, then the wrong text of each video,
            (2, B).
        region: True for the patches of the region, the same in all frames of a clip, (B, S / patch, S / patch).
    """

    masked: MaskedTexts
    chances: Tensor
    region: Tensor


def draw(config: ModelConfig, ids: Tensor, *, generator: torch.Generator | None) -> Draws:
    """Draw the random choices of a batch.

    Args:
        config: Sizes of the model.
        ids: Token ids (B, L).
        generator: Source of randomness; None: torch's global one.
    """
    chosen = choose(normal_tokens(ids), generator=generator)
    masked = hide(ids, chosen, vocabulary=config.vocabulary, generator=generator)
    chances = uniform((2, len(ids)), ids.device, generator)
    return Draws(masked, chances, draw_region(config, len(ids), device=ids.device, generator=generator))


def draw_region(
    config: ModelConfig, size: int, *, device: torch.device | str = "cpu", generator: torch.Generator | None
) -> Tensor:
    """Draw a rectangle of patches for each clip, (B, S / patch, S / patch), True inside.

    Its share of the area is uniform in `AREA` and its ratio in `RATIO`. Sides and corner are rounded down to whole
    patches (at least one). A rectangle that does not fit is drawn again.

    Args:
        config: Sizes of the model.
        size: B.
        device: Device of the result.
        generator: Source of randomness; None: torch's global one.
    """
    whole = config.image_size
    u = uniform((4, size, TRIES), device, generator)
    area, ratio = (low + (high - low) * u[i] for i, (low, high) in enumerate((AREA, RATIO)))
    sides = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()]) * whole  # height and width, (2, B, TRIES)
    first = (sides < whole).all(0).long().argmax(1, keepdim=True)  # the first that fits
    sides = sides.gather(2, first.expand(2, -1, -1)).clamp_max(whole)
    lengths = (sides / config.patch).long().clamp_min(1)  # in patches, (2, B, 1)
    corners = u[2:].gather(2, first.expand(2, -1, -1))
    starts = (corners * (whole - lengths * config.patch + 1) / config.patch).long()
    place = torch.arange(config.side, device=device)
    inside: Tensor = (place >= starts) & (place < starts + lengths)  # of rows and columns, (2, B, S / patch)
    return inside[0, :, :, None] & inside[1, :, None]


def black_outside(video: Tensor, region: Tensor, patch: int) -> Tensor:
    """Return clips that are black outside their region: pixels of 0, before normalisation.

    Args:
        video: (B, T, 3, S, S), bytes or pixels in [0, 1].
        region: (B, S / patch, S / patch), True inside.
        patch: Side of a patch in pixels.
    """
    inside = region.repeat_interleave(patch, 1).repeat_interleave(patch, 2)
    return video.masked_fill(~inside[:, None, None], 0)


def wrong_pairs(scores: Tensor, chances: Tensor) -> Tensor:
    """Choose a wrong column for each row, with the probability softmax of the scores without the diagonal; (B,).

    Args:
        scores: S, (B, B) with B at least 2; the right column of a row is on the diagonal.
        chances: Uniform in [0, 1), (B,).
    """
    size = len(scores)
    rows = torch.arange(size, device=scores.device)
    likely = wrong_probabilities(scores)
    chosen = (likely.cumsum(1) <= chances[:, None].to(likely)).sum(1).clamp_max(size - 1)
    last = torch.where(rows == size - 1, size - 2, size - 1)  # rounding may leave the sum short of 1
    return torch.where(chosen == rows, last, chosen)


def wrong_probabilities(scores: Tensor) -> Tensor:
    """Return the probabilities with which `wrong_pairs` chooses, (B, B), 0 on the diagonal."""
    diagonal = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    return scores.masked_fill(diagonal, float("-inf")).softmax(1)
