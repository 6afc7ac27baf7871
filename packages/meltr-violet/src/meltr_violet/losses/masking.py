"""Random masks of text tokens and of cells of a clip, from a given generator (Fu et al. 2021, section 3.3).

Everything is drawn for the whole batch at once, and the number of draws depends only on shapes. So nothing waits for
the device, and a replayed generator gives the same masks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from meltr.metrics.classification import IGNORED
from meltr.video.draws import uniform
from meltr.video.text.masking import PROBABILITY, choose, given_one, mask_out, normal_tokens


@dataclass(frozen=True)
class Masks:
    """The masks of a batch.

    Args:
        ids: Texts with some tokens replaced by [MASK], (B, X), or (B, O, X) in the released multiple-choice path.
        text_targets: The original id where a token is to be predicted, -100 elsewhere; same shape as `ids`.
        cells: True where a cell of the clip is masked, (B, T, h, w).
    """

    ids: Tensor
    text_targets: Tensor
    cells: Tensor


def _integers(u: Tensor, count: Tensor | int) -> Tensor:
    """Map u, uniform in [0, 1), to integers uniform in 0 ... count - 1."""
    return (u * count).long().clamp_max(count - 1)


def draw_tokens(ids: Tensor, *, generator: torch.Generator | None) -> Tensor:
    """Choose each normal token with probability 0.15, conditioned on at least one per text; (B, X), boolean.

    Args:
        ids: (B, X).
        generator: Source of randomness; None: torch's global one.
    """
    normal = normal_tokens(ids)
    chosen = choose(normal, generator=generator)
    return given_one(normal, chosen, uniform((len(ids), 1), ids.device, generator))


def draw_cells(
    size: tuple[int, int, int, int], *, device: torch.device | str = "cpu", generator: torch.Generator | None
) -> Tensor:
    """Mask the union of T blocks in each clip (blockwise masking).

    A block spans t frames, t uniform in 1 ... T - 1 (1 if T = 1), and rows uniform in 1 ... floor(2 h / 3) - 1, and
    columns likewise (at least 1, for grids below 3 x 3, which the original does not support). Its position is uniform
    among those where it fits.

    Args:
        size: (B, T, h, w).
        device: Device of the result.
        generator: Source of randomness; None: torch's global one.

    Returns:
        (B, T, h, w), True where masked.
    """
    batch, *lengths = size
    blocks = lengths[0]
    u = uniform((2, 3, batch, blocks), device, generator)
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
    """Draw the masks of a batch as in fine-tuning: at least one token per text, and blocks of cells.

    Args:
        ids: (B, X).
        size: (B, T, h, w).
        generator: Source of randomness; None: torch's global one.
    """
    masked, targets = mask_out(ids, draw_tokens(ids, generator=generator))
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
        codes: (B, T, h, w); a negative code is unknown.
        cells: (B, T, h, w), True where masked.
    """
    wanted = torch.where(cells & (codes >= 0), codes.long(), IGNORED).flatten(2)
    return F.pad(wanted, (1, 0), value=IGNORED).flatten(1)


def attended_positions(scores: Tensor, ids: Tensor, frames: int, *, generator: torch.Generator | None) -> Tensor:
    """Draw positions in proportion to the attention that they receive (attended masking, pre-training only).

    It draws int(0.15 L) positions without replacement from video and text together. The cls of frames, [CLS], [SEP]
    and [PAD] are never drawn.

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
    masked, targets = mask_out(ids, hit[:, video:])
    cells = hit[:, :video].view(batch, frames, -1)[:, :, 1:].view(size)
    return Masks(masked, targets, cells)
