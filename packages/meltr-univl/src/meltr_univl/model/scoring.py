"""Encoded texts and videos, and predictions from them: similarities, captions, sentiments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from meltr_univl.model.beam_search import beam_search
from meltr_univl.model.similarity import align_similarity, joint_similarity, mean_states, text_vectors
from meltr_univl.model.univl import Univl

Scoring = Literal["align", "joint"]


class Encoded(NamedTuple):
    """Encoded texts or videos.

    Args:
        states: (N, L, H).
        mask: (N, L).
    """

    states: Tensor
    mask: Tensor


@torch.no_grad()
def encode_texts(model: Univl, columns: Mapping[str, Tensor]) -> Encoded:
    """Encode the columns ``text`` and ``text_mask`` of a batch."""
    return Encoded(model.encode_text(columns["text"], columns["text_mask"]), columns["text_mask"])


@torch.no_grad()
def encode_videos(model: Univl, columns: Mapping[str, Tensor]) -> Encoded:
    """Encode the columns ``video`` and ``video_mask`` of a batch."""
    mask = columns["video_mask"]
    return Encoded(model.encode_video(model.normalise(columns["video"]), mask), mask)


def join_batches(parts: list[Encoded]) -> Encoded:
    """Return several batches as one."""
    return Encoded(*map(torch.cat, zip(*parts, strict=True)))


@torch.no_grad()
def similarity(model: Univl, texts: Encoded, videos: Encoded, *, scoring: Scoring, pairs: int) -> Tensor:
    """Return how well each text fits each video, (N, M).

    Args:
        model: The model, in eval mode.
        texts: N encoded texts.
        videos: M encoded videos.
        scoring: ``align`` (a pass for each pair) or ``joint`` (cosines).
        pairs: Largest number of pairs per pass.
    """
    if scoring == "joint":
        return joint_similarity(text_vectors(*texts), mean_states(*videos))
    return align_similarity(model, (texts.states, texts.mask), (videos.states, videos.mask), pairs_per_pass=pairs)


@torch.no_grad()
def describe(
    model: Univl, columns: Mapping[str, Tensor], *, beams: int, length: int
) -> tuple[list[list[list[int]]], Tensor]:
    """Return the hypotheses of each clip, best first, as token ids, and their scores (N, beams)."""
    memory, mask = _memory(model, columns)
    found = beam_search(model, memory, mask, beams=beams, length=length)
    return [[[i for i in row if i >= 0] for row in rows] for rows in found.ids.tolist()], found.scores


@torch.no_grad()
def sentiments(model: Univl, columns: Mapping[str, Tensor]) -> Tensor:
    """Return the sentiment of each clip, (N,)."""
    return model.score(model.pooled(_memory(model, columns)[0]))


def _memory(model: Univl, columns: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the joint states of texts and videos, (N, W + F, H), and their mask (N, W + F)."""
    text, video = encode_texts(model, columns), encode_videos(model, columns)
    return model.join(*text, *video), torch.cat([text.mask, video.mask], 1)
