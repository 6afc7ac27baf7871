"""Losses of a similarity matrix, texts by videos, with the right pairs on its diagonal."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def margin_ranking(
    scores: Tensor, *, margin: float = 0.1, clips_of_video: int = 1, hard_negative_rate: float = 0.5
) -> Tensor:
    """Return the max-margin ranking loss, 0-dim (Luo et al., arXiv 2002.06353, equation 4).

    The loss is mean_ij [max(0, margin + S_ij - S_ii) + max(0, margin + S_ij - S_jj)]. The diagonal adds 2 margin / B.

    Args:
        scores: S, (B, B).
        margin: Margin by which the right pair should score higher.
        clips_of_video: n; rows come in groups of n clips of one video. If n > 1, other clips of the same video have a
            larger weight.
        hard_negative_rate: h, the weight of those clips.
    """
    right = scores.diagonal()
    losses = (margin + scores - right[:, None]).relu() + (margin + scores - right).relu()
    if clips_of_video > 1:
        videos, easy = len(scores) // clips_of_video, 1 - hard_negative_rate
        group = torch.arange(len(scores), device=scores.device) // clips_of_video
        inside, outside = videos * (1 - easy), easy / (videos - 1) * videos
        losses = losses * torch.where(group[:, None] == group, inside, outside)
    return losses.mean()


def row_cross_entropy(scores: Tensor, right: Tensor | None = None) -> Tensor:
    """Return the cross-entropy of each text's right video among all videos, 0-dim.

    Args:
        scores: (B, N).
        right: Index of the right video of each text, (B,); None: the diagonal.
    """
    return F.cross_entropy(scores, torch.arange(len(scores), device=scores.device) if right is None else right)


def mil_nce(scores: Tensor, *, clips_of_video: int = 1) -> Tensor:
    """Return the MIL-NCE loss, 0-dim (Miech et al., arXiv 1912.06430), as in UniVL's pre-training.

    For the middle clip i of every video, where P is the set of clips of the same video:
    logsumexp(all S_ji, and S_ij for j not in P) - logsumexp(S_ji for j in P).

    Args:
        scores: S, dot products, (B n, B n).
        clips_of_video: n, clips per video.
    """
    group = torch.arange(len(scores), device=scores.device) // clips_of_video
    same = group[:, None] == group
    lowest = torch.finfo(scores.dtype).min
    everything = torch.cat([scores.T, scores.masked_fill(same, lowest)], 1).logsumexp(1)
    positive = scores.T.masked_fill(~same, lowest).logsumexp(1)
    middle = torch.arange(len(scores) // clips_of_video, device=scores.device) * clips_of_video + clips_of_video // 2
    return (everything - positive)[middle].mean()
