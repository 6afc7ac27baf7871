"""Word-patch alignment: the optimal transport distance between the words of a text and the patches of a video.

It is the alignment of Kim et al., ViLT, arXiv 2102.03334, section 3.2, with the proximal point iterations of Xie et al.
(IPOT), arXiv 1802.04307, algorithm 1. Details follow the public repository showlab/all-in-one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from meltr.video.losses import wide

SHORTEST = 1e-5
"""Smallest length of a vector in cosines. Shorter vectors are treated as this long."""


def alignment_distance(
    text: Tensor, video: Tensor, *, text_mask: Tensor, video_mask: Tensor, beta: float = 0.5, iterations: int = 50
) -> Tensor:
    """Return the distance of each text to its video, sum_mn C_mn P_mn, (B,); 0 if either has no token.

    C holds the cosine distances of words and patches. P is the transport plan, a constant for gradients of any order
    and for forward-mode derivatives. The computation is in float32 or higher precision, also under autocast.

    Args:
        text: Features of words, (B, L, D).
        video: Features of patches, (B, l, D).
        text_mask: True where a word takes part, (B, L).
        video_mask: True where a patch takes part, (B, l).
        beta: Step of the iterations. A smaller step makes the plan sharp faster.
        iterations: Number of iterations.
    """
    with torch.autocast(device_type=text.device.type, enabled=False):
        words, patches = (F.normalize(wide(part), dim=-1, eps=SHORTEST) for part in (text, video))
        cost = (1 - words @ patches.mT).masked_fill(~pairs(text_mask, video_mask), 0)
        plan = transport_plan(
            cost.detach(), text_mask=text_mask, video_mask=video_mask, beta=beta, iterations=iterations
        )
        return (cost * plan).sum((1, 2))


@torch.no_grad()
def transport_plan(
    cost: Tensor, *, text_mask: Tensor, video_mask: Tensor, beta: float = 0.5, iterations: int = 50
) -> Tensor:
    """Return the mass that each word sends to each patch, (B, L, l), 0 for those that take no part.

    Each of M words sends 1 / M, and each of N patches receives 1 / N, up to the error of the iterations.

    Args:
        cost: C, (B, L, l).
        text_mask: True where a word takes part, (B, L).
        video_mask: True where a patch takes part, (B, l).
        beta: Step of the iterations.
        iterations: Number of iterations.
    """
    both = pairs(text_mask, video_mask)
    words, patches = both.any(2), both.any(1)
    kernel = torch.exp(-cost / beta)
    sent, received = _shares(words, cost.dtype), _shares(patches, cost.dtype)
    plan, row = both.to(cost.dtype), sent
    for _ in range(iterations):
        plan = kernel * plan
        column = received / _or_one((plan * row[:, :, None]).sum(1), patches)
        row = sent / _or_one((plan * column[:, None]).sum(2), words)
        plan = row[:, :, None] * plan * column[:, None]
    return plan


def pairs(text_mask: Tensor, video_mask: Tensor) -> Tensor:
    """Return a mask of the pairs of words and patches that take part, (B, L, l)."""
    return text_mask[:, :, None] & video_mask[:, None]


def _shares(taking_part: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 1 / M for each of the M tokens that take part and 0 for the others, (B, L)."""
    return taking_part.to(dtype) / taking_part.sum(1, keepdim=True).clamp_min(1)


def _or_one(sums: Tensor, taking_part: Tensor) -> Tensor:
    return sums.where(taking_part, torch.ones_like(sums))
