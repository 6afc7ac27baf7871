"""Word-patch alignment: how far the words of a text lie from the patches of a video, by optimal transport.

Kim et al., ViLT, arXiv 2102.03334, section 3.2, with the proximal point iterations of Xie et al. (IPOT), arXiv
1802.04307, algorithm 1, in the form of the public repository showlab/all-in-one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from meltr.video.losses import wide

SHORTEST = 1e-5
"""Vectors that are shorter count as this long in cosines."""


def alignment_distance(
    text: Tensor, video: Tensor, *, text_mask: Tensor, video_mask: Tensor, beta: float = 0.5, iterations: int = 50
) -> Tensor:
    """Return the distance of each text and its video, sum_mn C_mn P_mn, (B,); 0 where either has no token.

    C are cosine distances of words and patches, and P is the transport plan, a constant for gradients of any order and
    for forward-mode derivatives. In float32 at least, under autocast too.

    Args:
        text: Features of words, (B, L, D).
        video: Features of patches, (B, l, D).
        text_mask: True where a word takes part, (B, L).
        video_mask: True where a patch takes part, (B, l).
        beta: Step of the iterations: the smaller, the faster the plan becomes sharp.
        iterations: How many.
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
    """Return how much of each word goes to each patch, (B, L, l), 0 for those that take no part.

    Of M words each sends 1 / M; of N patches each gets 1 / N, up to what the iterations leave.

    Args:
        cost: C, (B, L, l).
        text_mask: True where a word takes part, (B, L).
        video_mask: True where a patch takes part, (B, l).
        beta: Step of the iterations.
        iterations: How many.
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
    """Return which pairs of words and patches take part, (B, L, l), boolean."""
    return text_mask[:, :, None] & video_mask[:, None]


def _shares(taking_part: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 1 / M for each of the M that take part and 0 for the others, (B, L)."""
    return taking_part.to(dtype) / taking_part.sum(1, keepdim=True).clamp_min(1)


def _or_one(sums: Tensor, taking_part: Tensor) -> Tensor:
    return sums.where(taking_part, torch.ones_like(sums))
