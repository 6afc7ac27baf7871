"""Multiple-choice answering as in the released code of MELTR, with its three defects (``--fidelity released``).

1. Matching uses the first B of the B O rows (clip, choice) as the clips and texts of the batch.
2. Tokens are drawn once per *column*, for all choices of a clip. The indices of choices are then used as positions, so
   a choice with a hit loses all its tokens, including padding. Its targets are its tokens if it was hit once, and
   [MASK] everywhere if it was hit more than once.
3. As a result, the masked text carries no information. (Masked video is correct, but is encoded with that text.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from meltr.metrics.classification import IGNORED
from meltr.video.text.masking import normal_tokens
from meltr.video.text.wordpiece import MASK, PAD
from meltr_violet.losses.masking import draw_tokens


def draw_columns(ids: Tensor, *, generator: torch.Generator | None) -> Tensor:
    """Draw columns of the texts, (B, X).

    Each column with a normal token is drawn with probability 0.15, and at least one is drawn.

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
    """Return the clip and text rows of the B x B pairs that the released matching loss scores, each (B, B).

    Args:
        batch: B.
        choices: O.
        device: Device of the result.
    """
    rows = torch.arange(batch, device=device)
    return (rows // choices)[:, None].expand(batch, batch), rows[None].expand(batch, batch)
