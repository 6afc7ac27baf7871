"""Similarity of texts and videos: cosines of mean states (joint), or a cross encoder pass for every pair (align).

See Luo et al., arXiv 2002.06353, sections 3.2 and 3.3. Every text and every video is encoded once.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from meltr_univl.model.univl import Univl

PAIRS_PER_PASS = 128


def mean_states(states: Tensor, mask: Tensor) -> Tensor:
    """Return the mean (B, H) of states (B, L, H) where `mask` (B, L) is 1; zero if it is 1 nowhere."""
    counts = mask.sum(1, keepdim=True).clamp_min(1)
    return (states * mask[..., None].to(states.dtype)).sum(1) / counts


def text_vectors(states: Tensor, mask: Tensor) -> Tensor:
    """Return the mean state of texts, (B, H), without [CLS] and with [SEP]."""
    return mean_states(states[:, 1:], mask[:, 1:])


def joint_similarity(text: Tensor, video: Tensor, *, normalise: bool = True) -> Tensor:
    """Return the similarity (N, M) of text vectors (N, H) and video vectors (M, H), in float32 or higher precision.

    Args:
        text: Text vectors, from `text_vectors`.
        video: Video vectors, from `mean_states`.
        normalise: True: cosines; False: dot products, as MIL-NCE uses them.
    """
    with torch.autocast(text.device.type, enabled=False):
        pair = [part.float() if part.dtype in (torch.float16, torch.bfloat16) else part for part in (text, video)]
        if normalise:
            pair = [F.normalize(part, dim=-1) for part in pair]
        return pair[0] @ pair[1].T


def pooled_pairs(
    model: Univl,
    text: tuple[Tensor, Tensor],
    video: tuple[Tensor, Tensor],
    *,
    texts: Tensor,
    videos: Tensor,
    pairs_per_pass: int | None = None,
) -> Tensor:
    """Return the pooled states of pairs of texts and videos, (P, H).

    States may be on another device than the model (retrieval among many). Pairs are moved when they are needed.

    Args:
        model: The model, with a part that pools.
        text: States (N, W, H) and mask (N, W).
        video: States (M, F, H) and mask (M, F).
        texts: Text index of each pair, (P,).
        videos: Video index of each pair, (P,).
        pairs_per_pass: Maximum number of pairs per forward pass; None: all at once.
    """
    device, size = next(model.parameters()).device, pairs_per_pass or max(1, len(texts))
    if len(texts) == 0:  # a batch of one clip has no other pairs, and `split` would yield one empty pass
        return text[0].new_empty(0, text[0].shape[-1]).to(device)
    pooled = []
    for words, frames in zip(texts.split(size), videos.split(size), strict=True):
        parts = [part[rows].to(device) for rows, side in ((words, text), (frames, video)) for part in side]
        pooled.append(model.pooled(model.join(*parts)))
    return torch.cat(pooled)


def align_similarity(
    model: Univl,
    text: tuple[Tensor, Tensor],
    video: tuple[Tensor, Tensor],
    *,
    pairs_per_pass: int | None = PAIRS_PER_PASS,
) -> Tensor:
    """Return the cross encoder's score of every text with every video, (N, M).

    Args:
        model: The model, with the part ``align``.
        text: States (N, W, H) and mask (N, W).
        video: States (M, F, H) and mask (M, F).
        pairs_per_pass: Maximum number of pairs per forward pass; None: all at once.
    """
    rows, columns = len(text[0]), len(video[0])
    device = text[0].device
    texts = torch.arange(rows, device=device).repeat_interleave(columns)
    videos = torch.arange(columns, device=device).repeat(rows)
    pooled = pooled_pairs(model, text, video, texts=texts, videos=videos, pairs_per_pass=pairs_per_pass)
    return model.matching(pooled).view(rows, columns)
