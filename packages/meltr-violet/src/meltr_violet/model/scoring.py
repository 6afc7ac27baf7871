"""Score pairs of clips and texts. Each clip and text is encoded once; the transformer reads the pairs in chunks."""

from __future__ import annotations

import torch
from torch import Tensor

from meltr_violet.model.violet import Violet

PAIRS_PER_PASS = 64
"""Largest number of pairs of clip and text per pass of the transformer in evaluation."""


def pooled_pairs(
    model: Violet,
    video: Tensor,
    text: Tensor,
    ids: Tensor,
    *,
    clips: Tensor,
    texts: Tensor,
    pairs_per_pass: int | None = None,
) -> Tensor:
    """Return the [CLS] state of each pair, (P, D).

    Features may be on another device than the model (retrieval over many clips). Pairs are moved when they are needed.

    Args:
        model: The model.
        video: Video tokens (N, T n, D).
        text: Text embeddings (M, X, D).
        ids: Their token ids (M, X).
        clips: Clip index of each pair, (P,).
        texts: Text index of each pair, (P,).
        pairs_per_pass: Maximum number of pairs per forward pass; None: all at once.
    """
    device = next(model.parameters()).device
    if len(clips) == 0:
        return video.new_empty(0, video.shape[-1]).to(device)
    size = pairs_per_pass or len(clips)
    states = [
        model.pooled(video[clip].to(device), text[which].to(device), ids[which].to(device))
        for clip, which in zip(clips.split(size), texts.split(size), strict=True)
    ]
    return torch.cat(states)


def all_pairs(clips: int, texts: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the clip and text index of every pair, (clips * texts,) each, ordered by clip."""
    return (
        torch.arange(clips, device=device).repeat_interleave(texts),
        torch.arange(texts, device=device).repeat(clips),
    )


@torch.no_grad()
def score_pairs(model: Violet, video: Tensor, ids: Tensor, *, pairs_per_pass: int = PAIRS_PER_PASS) -> Tensor:
    """Return the matching score of each text with each clip, (M, N), in [0, 1].

    The score is the sigmoid of the matching head, without temperature. Each text is encoded once. Every pair goes
    through the transformer, as in the retrieval evaluation of the original.

    Args:
        model: The model, in eval mode.
        video: Video tokens of N clips, (N, T n, D), from `Violet.encode_video`, on any device.
        ids: Token ids of M texts, (M, X).
        pairs_per_pass: Maximum number of pairs per forward pass.
    """
    device = next(model.parameters()).device
    text = model.embed_text(ids.to(device))
    clips, texts = all_pairs(len(video), len(ids), video.device)
    states = pooled_pairs(
        model,
        video,
        text.to(video.device),
        ids.to(video.device),
        clips=clips,
        texts=texts,
        pairs_per_pass=pairs_per_pass,
    )
    return head(model, "vtm", states).view(len(video), len(ids)).sigmoid().T


def answer_logits(model: Violet, frames: Tensor, ids: Tensor) -> Tensor:
    """Return the logits of the answer classes, (B, A).

    Args:
        model: The model.
        frames: (B, T, 3, H, W).
        ids: Questions, (B, X).
    """
    states = model.pooled(model.encode_video(frames), model.embed_text(ids), ids)
    return head(model, "answer", states)


def choice_logits(model: Violet, frames: Tensor, ids: Tensor, *, pairs_per_pass: int | None = None) -> Tensor:
    """Return the logits of the choices, (B, O); each clip is encoded once.

    Args:
        model: The model.
        frames: (B, T, 3, H, W).
        ids: Question and choice, for each of O choices, (B, O, X).
        pairs_per_pass: Maximum number of pairs per forward pass; None: all at once.
    """
    batch, choices, _ = ids.shape
    flat = ids.flatten(0, 1)
    rows = torch.arange(batch * choices, device=ids.device)
    states = pooled_pairs(
        model,
        model.encode_video(frames),
        model.embed_text(flat),
        flat,
        clips=rows // choices,
        texts=rows,
        pairs_per_pass=pairs_per_pass,
    )
    return head(model, "choice", states).view(batch, choices)


def head(model: Violet, name: str, states: Tensor) -> Tensor:
    """Apply a head of the model to states (..., D).

    Raises:
        ValueError: If the model was built without that head.
    """
    found = getattr(model, name)
    if found is None:
        raise ValueError(f"this model was built without the head {name!r}")
    outputs: Tensor = found(states)
    return outputs
