"""Multiple-choice answering as in the released code of MELTR, with its three defects (``--fidelity released``).

1. Matching takes the first B of the B O rows (clip, choice) for the clips and texts of the batch.
2. A token draw is one draw a *column*, shared by the choices of a clip; then the numbers of choices are taken for
   positions: a choice with a hit loses all its tokens, padding included. Its targets are its tokens if it was hit once,
   and [MASK] everywhere if it was hit more often.
3. So the masked text is no text. (Masked video is sound, but reads along with it.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from meltr.metrics.classification import IGNORED
from meltr.video.text.masking import normal_tokens
from meltr.video.text.wordpiece import MASK, PAD
from meltr_violet.losses.masking import draw_tokens


def draw_columns(ids: Tensor, *, generator: torch.Generator | None) -> Tensor:
    """Draw columns of the texts, (B, X): each that holds a normal token with probability 0.15, at least one of them.

    Args:
        ids: Texts of all choices, (B, O, X).
        generator: Source of randomness; None: torch's global one.
    """
    return draw_tokens(torch.where(normal_tokens(ids).any(1), MASK, PAD), generator=generator)


def mask_choices(ids: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Mask whole choices as the released code does.

    Args:
        ids: Texts of all choices, (B, O, X).
        columns: The columns drawn, (B, X).

    Returns:
        Masked ids and targets, (B, O, X).
    """
    hits = (normal_tokens(ids) & columns[:, None]).sum(-1, keepdim=True)
    masked = torch.where(hits > 0, MASK, ids)
    once = torch.where(hits == 1, ids, MASK)
    return masked, torch.where(hits > 0, once, IGNORED)


def matching_pairs(batch: int, choices: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return clip and text row of the B x B pairs that the released matching loss scores, each (B, B).

    Args:
        batch: B.
        choices: O.
        device: Where.
    """
    rows = torch.arange(batch, device=device)
    return (rows // choices)[:, None].expand(batch, batch), rows[None].expand(batch, batch)
