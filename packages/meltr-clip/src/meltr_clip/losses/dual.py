"""The losses of a dual encoder: classes, contrast, sigmoid, matching, masked text, and consistency of views.

Clips and texts are encoded once per batch. All pairs of a group (captions of one video, clips of one class) are right,
as in UniCL (Yang et al., arXiv 2204.03610). Where all groups differ, ``contrastive`` is CLIP's loss and ``sigmoid`` is
SigLIP's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from meltr.metrics.classification import IGNORED
from meltr.parallel.gather import gather
from meltr.video.losses import cross_entropy, wide
from meltr_clip.losses.draws import Draws, hidden_places, picked_frames, wrong_pairs
from meltr_clip.model.dual import Dual

LOSSES = ("label", "contrastive", "sigmoid", "matching", "masked_text", "consistency")
"""Losses that `task_losses` computes."""


@dataclass(frozen=True)
class Batch:
    """Clips with their texts.

    Args:
        video: Bytes (B, T, 3, S, S), or patches (B, T, N, p p 3).
        ids: Token ids (B, L).
        group: Pairs with the same number are right pairs of each other, (B,).
        shapes: Rows and columns of patches, (B, T, 2), for patches.
    """

    video: Tensor
    ids: Tensor
    group: Tensor
    shapes: Tensor | None = None


def task_losses(
    model: Dual, batch: Batch, draws: Draws, *, wanted: Sequence[str], negatives: Literal["all", "own"] = "all"
) -> dict[str, Tensor]:
    """Compute the losses named in `wanted`, each 0-dim, in that order.

    Args:
        model: The model, with the heads that the losses need.
        batch: The batch; for ``label``, the group is the class.
        draws: The random choices of the batch, from `meltr_clip.losses.draws.draw`.
        wanted: Names from `LOSSES`.
        negatives: Texts and clips to compare with: those of ``all`` processes, or of the ``own`` one.

    Raises:
        ValueError: If a name is unknown, or the model lacks the head of a loss.
    """
    passes = Passes(model, batch, draws, negatives)
    makers: dict[str, Callable[[], Tensor]] = {
        "label": passes.label,
        "contrastive": passes.contrast,
        "sigmoid": passes.sigmoid,
        "matching": passes.matching,
        "masked_text": passes.masked_text,
        "consistency": passes.consistency,
    }
    unknown = [name for name in wanted if name not in makers]
    if unknown:
        raise ValueError(f"unknown losses {unknown}: choose from {LOSSES}")
    return {name: makers[name]() for name in wanted}


class Passes:
    """The forward passes of one batch, each computed when a loss first needs it."""

    def __init__(self, model: Dual, batch: Batch, draws: Draws, negatives: str) -> None:
        self.model, self.batch, self.draws, self.negatives = model, batch, draws, negatives

    @cached_property
    def pictures(self) -> Tensor:
        """Normalised frames."""
        return self.model.pictures(self.batch.video)

    @cached_property
    def clips(self) -> Tensor:
        """Unit vectors of clips, (B, P)."""
        return self.model.clips(self.pictures, self.batch.shapes)

    @cached_property
    def texts(self) -> Tensor:
        """Unit vectors of texts, (B, P)."""
        return self.model.texts(self.batch.ids)

    @cached_property
    def compared(self) -> tuple[Tensor, Tensor, Tensor]:
        """Texts and clips of all processes, (N, P) each, and which of them are right for the own ones, (B, N)."""
        found = (self.texts, self.clips, self.batch.group)
        texts, clips, groups = map(gather, found) if self.negatives == "all" else found
        return texts, clips, self.batch.group[:, None] == groups[None]

    def label(self) -> Tensor:
        """Return the cross-entropy of the classes."""
        return cross_entropy(self.model.class_scores(self.clips), self.batch.group)

    def contrast(self) -> Tensor:
        """Return the mean of both directions of the cross-entropy over all texts, and over all clips.

        The target of a row is uniform over its right pairs. Without further ones this is CLIP's loss (arXiv 2103.00020,
        figure 3).
        """
        texts, clips, same = self.compared
        target = same.to(texts.dtype) / same.sum(1, keepdim=True)
        rows = (self.model.scores(self.texts, clips), self.model.scores(texts, self.clips).T)
        return cast(Tensor, sum(-(target * F.log_softmax(each, 1)).sum(1).mean() for each in rows) / 2)

    def sigmoid(self) -> Tensor:
        """Return SigLIP's loss (arXiv 2303.15343, section 3.2), with z = 1 for right pairs and -1 for wrong ones.

        It is -1/B sum_ij log sigmoid(z_ij s_ij).
        """
        _, clips, same = self.compared
        signed = (2 * same.to(clips.dtype) - 1) * self.model.pair_scores(self.texts, clips)
        return -F.logsigmoid(signed).sum(1).mean()

    def matching(self) -> Tensor:
        """Return the loss of telling right from wrong pairs, from the two vectors and their product.

        Every clip has one wrong text and every text one wrong clip, similar ones more often (as in ALBEF, arXiv
        2107.07651). If all of the batch belongs together there are no wrong pairs.
        """
        head = self._head("matching")
        scores = self.model.scores(self.texts, self.clips).detach()
        same = self.batch.group[:, None] == self.batch.group[None]
        clips, there = wrong_pairs(scores, same, self.draws.chances[1])
        texts, also = wrong_pairs(scores.T, same, self.draws.chances[0])
        pairs = [(self.texts, self.clips), (self.texts, self.clips[clips]), (self.texts[texts], self.clips)]
        rows = torch.cat([torch.cat([text, clip, text * clip], 1) for text, clip in pairs])
        logits = wide(head(rows)[:, 0])
        counts = torch.cat([torch.ones_like(there), there, also]).to(logits.dtype)
        right = (torch.arange(len(logits), device=logits.device) < len(texts)).to(logits.dtype)
        each = F.binary_cross_entropy_with_logits(logits, right, reduction="none")
        return (each * counts).sum() / counts.sum()

    def masked_text(self) -> Tensor:
        """Return the cross-entropy of hidden tokens, from the text that hides them and the vector of the clip.

        CLIP's text tower looks to the left only: it predicts a token from those before it.
        """
        head = self._head("masked_text")
        states, _ = self.model.states(self.draws.hidden)
        places, counted = hidden_places(self.draws.chosen)
        picked = states.gather(1, places[..., None].expand(-1, -1, states.shape[2]))
        labels = torch.where(counted, self.batch.ids.gather(1, places), IGNORED)
        return cross_entropy(head(picked, self.clips.to(states.dtype), self.model.embeddings), labels)

    def consistency(self) -> Tensor:
        """Return 1 - the mean cosine of clips and their views: half of the frames, a part of each."""
        frames = self.draws.frames
        shapes = None if self.batch.shapes is None else picked_frames(self.batch.shapes, frames)
        view = self.model.clips(picked_frames(self.pictures, frames), shapes, box=self.draws.box)
        return 1 - (self.clips * view).sum(1).mean()

    def _head(self, name: str) -> Callable[..., Tensor]:
        found = getattr(self.model, name)
        if found is None:
            raise ValueError(f"the loss {name!r} needs its head, but this model was built without it")
        return cast(Callable[..., Tensor], found)
