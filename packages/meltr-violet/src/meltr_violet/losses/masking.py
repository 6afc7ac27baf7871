"""Which text tokens and which cells of a clip are masked (Fu et al. 2021, section 3.3), drawn from a given generator.

Everything is drawn for the whole batch at once and with a number of draws that depends on shapes alone, so that nothing
waits for the device and a replayed generator gives the same masks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from meltr.video.text.wordpiece import CLS, MASK, PAD, SEP
from meltr_violet.model.config import IGNORED

PROBABILITY = 0.15
"""Part of the normal tokens that is masked on average, and part of all positions in attended masking."""

SPECIAL = (CLS, SEP, PAD)
"""Tokens that are never masked."""


@dataclass(frozen=True)
class Masks:
    """What is masked in a batch.

    Args:
        ids: Texts with some tokens replaced by [MASK], (B, X), or (B, O, X) in the released multiple-choice path.
        text_targets: The original id where a token is to be predicted, -100 elsewhere; shape of `ids`.
        cells: True where a cell of the clip is masked, (B, T, h, w).
    """

    ids: Tensor
    text_targets: Tensor
    cells: Tensor


def _uniform(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = like.device if generator is None else generator.device
    return torch.rand(shape, device=device, generator=generator).to(like.device)


def _integers(u: Tensor, count: Tensor | int) -> Tensor:
    """Map u, uniform in [0, 1), to integers uniform in 0 ... count - 1."""
    return (u * count).long().clamp_max(torch.as_tensor(count, device=u.device) - 1)


def normal_tokens(ids: Tensor) -> Tensor:
    """Return where a text has tokens that may be masked: not [CLS], [SEP] or [PAD]; shape of `ids`."""
    return ~torch.isin(ids, torch.tensor(SPECIAL, device=ids.device))


def draw_tokens(
    ids: Tensor, *, generator: torch.Generator | None, probability: float = PROBABILITY, at_least_one: bool = True
) -> Tensor:
    """Choose each normal token with a probability, under the condition that a text gets at least one.

    The original draws a text again until a token is chosen, for ever if there is nothing to choose. The same
    distribution without repetition: the first chosen token is geometric, cut off at the number of tokens; later ones
    are independent. A text without a normal token gets none.

    Args:
        ids: (B, X).
        generator: Source of randomness; None: torch's global one.
        probability: Of a token.
        at_least_one: False: no condition, as in pre-training.

    Returns:
        (B, X), True where a token is chosen.
    """
    normal = normal_tokens(ids)
    chosen = normal & (_uniform(tuple(ids.shape), ids, generator) < probability)
    if not at_least_one:
        return chosen
    u = _uniform((len(ids), 1), ids, generator).double()
    count = normal.sum(1, keepdim=True)
    stay = 1 - probability
    first = (torch.log1p(-u * (1 - stay**count)) / math.log(stay)).long().clamp(max=count - 1)
    rank = normal.cumsum(1) - 1
    return normal & ((rank == first) | (chosen & (rank > first)))


def mask_tokens(ids: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Replace the chosen tokens by [MASK], always, and keep them as targets.

    Args:
        ids: (..., X).
        chosen: Same shape, boolean.

    Returns:
        Masked ids and targets (-100 where not chosen), both of the shape of `ids`.
    """
    return torch.where(chosen, MASK, ids), torch.where(chosen, ids, IGNORED)


def draw_cells(
    size: tuple[int, int, int, int], *, device: torch.device | str = "cpu", generator: torch.Generator | None
) -> Tensor:
    """Mask the union of T blocks in each clip (blockwise masking).

    A block spans t frames, t uniform in 1 ... T - 1 (1 if T = 1), and rows uniform in 1 ... floor(2 h / 3) - 1, columns
    likewise (at least 1, for grids below 3 x 3, which the original cannot take); its place is uniform among those where
    it fits.

    Args:
        size: (B, T, h, w).
        device: Where the result lies.
        generator: Source of randomness; None: torch's global one.

    Returns:
        (B, T, h, w), True where masked.
    """
    batch, *lengths = size
    blocks = lengths[0]
    like = torch.empty(0, device=device)
    u = _uniform((2, 3, batch, blocks), like, generator)
    inside = torch.ones(1, 1, 1, 1, 1, dtype=torch.bool, device=device)
    largest = (max(1, blocks - 1), max(1, 2 * lengths[1] // 3 - 1), max(1, 2 * lengths[2] // 3 - 1))
    for axis, (length, most) in enumerate(zip(lengths, largest, strict=True)):
        extent = 1 + _integers(u[0, axis], most)
        start = _integers(u[1, axis], length - extent + 1)
        place = torch.arange(length, device=device)
        within = (place >= start[..., None]) & (place < (start + extent)[..., None])
        shape = [batch, blocks, 1, 1, 1]
        shape[2 + axis] = length
        inside = inside & within.view(shape)
    return inside.any(1)


def draw_masks(ids: Tensor, size: tuple[int, int, int, int], *, generator: torch.Generator | None) -> Masks:
    """Draw the masks of a batch as in fine-tuning: tokens with at least one a text, and blocks of cells.

    Args:
        ids: (B, X).
        size: (B, T, h, w).
        generator: Source of randomness; None: torch's global one.
    """
    masked, targets = mask_tokens(ids, draw_tokens(ids, generator=generator))
    return Masks(masked, targets, draw_cells(size, device=ids.device, generator=generator))


def black_out(frames: Tensor, cells: Tensor, cell: int) -> Tensor:
    """Set the pixels of masked cells to 0: black before normalisation, not the mean colour.

    Args:
        frames: (B, T, 3, H, W), pixels in [0, 1] or bytes.
        cells: (B, T, h, w), True where masked.
        cell: Side of a cell in pixels.
    """
    height, width = frames.shape[-2:]
    pixels = cells.repeat_interleave(cell, 2).repeat_interleave(cell, 3)[..., :height, :width]
    return frames.masked_fill(pixels[:, :, None], 0)


def code_targets(codes: Tensor, cells: Tensor) -> Tensor:
    """Return the targets of masked visual modelling, (B, T (1 + h w)): codes of masked cells, -100 elsewhere.

    The cls of each frame, which comes first, has no code.

    Args:
        codes: (B, T, h, w); a negative code is one that is not known.
        cells: (B, T, h, w), True where masked.
    """
    wanted = torch.where(cells & (codes >= 0), codes.long(), IGNORED).flatten(2)
    return F.pad(wanted, (1, 0), value=IGNORED).flatten(1)


def attended_positions(scores: Tensor, ids: Tensor, frames: int, *, generator: torch.Generator | None) -> Tensor:
    """Draw positions in proportion to the attention that they receive (attended masking, pre-training only).

    int(0.15 L) positions without replacement over video and text together; the cls of frames, [CLS], [SEP] and [PAD]
    are left out.

    Args:
        scores: Attention received by every position, (B, L) with L = T n + X.
        ids: (B, X).
        frames: T.
        generator: Source of randomness; None: torch's global one.

    Returns:
        Positions, (B, int(0.15 L)).
    """
    video = scores.shape[1] - ids.shape[1]
    cls_of_frame = torch.arange(video, device=ids.device) % (video // frames) == 0
    allowed = torch.cat([(~cls_of_frame).expand(len(ids), -1), normal_tokens(ids)], 1)
    weights = scores.float() * allowed
    device = scores.device if generator is None else generator.device
    count = int(PROBABILITY * scores.shape[1])
    return torch.multinomial(weights.to(device), count, generator=generator).to(scores.device)


def masks_at(positions: Tensor, ids: Tensor, size: tuple[int, int, int, int]) -> Masks:
    """Return the masks that hide the given positions of the sequence [video ; text].

    Args:
        positions: (B, count), as from `attended_positions`.
        ids: (B, X).
        size: (B, T, h, w).
    """
    batch, frames, rows, columns = size
    video = frames * (1 + rows * columns)
    hit = torch.zeros(batch, video + ids.shape[1], dtype=torch.bool, device=ids.device).scatter_(1, positions, True)
    masked, targets = mask_tokens(ids, hit[:, video:])
    cells = hit[:, :video].view(batch, frames, -1)[:, :, 1:].view(size)
    return Masks(masked, targets, cells)
