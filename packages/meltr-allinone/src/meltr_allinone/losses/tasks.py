"""The losses of a batch: matching, alignment, masked text, contrastive, ranking and answering, with shared passes.

They are those of Wang et al., arXiv 2203.07303, section 3.3. Details follow the public repository showlab/all-in-one.
Frames are embedded once and shared by all losses and pairs. Matching and alignment share a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from meltr.parallel.gather import gather
from meltr.video.losses import cross_entropy, wanted_losses, wide
from meltr.video.text.wordpiece import PAD
from meltr_allinone.data.transforms import Normalisation, normalised
from meltr_allinone.losses.alignment import alignment_distance
from meltr_allinone.losses.draws import Draws
from meltr_allinone.model.all_in_one import AllInOne
from meltr_allinone.model.scoring import pooled_pairs

LOSSES = ("answer", "vtm", "mlm", "wpa", "contrastive", "rank")
"""Losses that `task_losses` computes."""

TEMPERATURE = 0.05
"""Default temperature, by which the contrastive loss divides similarities."""

ALIGNMENT = 0.1
"""Weight of word-patch alignment."""


@dataclass(frozen=True)
class Batch:
    """Clips with their texts.

    Args:
        video: (B, T, 3, S, S), normalised.
        ids: Token ids (B, L).
        answer: Class of the right answer, (B,), -100 for an answer that is not a class; None if there are no questions.
        continues: True where a token continues the previous word, (B, L); None: tokens are masked one by one.
        false_video: A wrong clip for each text, normalised, (B, T, 3, S, S); None: use other clips of the batch.
        false_ids: Wrong texts of each clip, (B, F, L); None: use other texts of the batch.
    """

    video: Tensor
    ids: Tensor
    answer: Tensor | None = None
    continues: Tensor | None = None
    false_video: Tensor | None = None
    false_ids: Tensor | None = None


def as_batch(columns: Mapping[str, Tensor], normalisation: Normalisation = "imagenet") -> Batch:
    """Return the columns of a batch of `meltr_allinone.data.encoder.WithWrong` as a `Batch`, with normalised videos."""
    videos = ("video", "false_video")
    return Batch(**{key: normalised(part, normalisation) if key in videos else part for key, part in columns.items()})


@dataclass(frozen=True)
class LossSettings:
    """Settings of the losses.

    Args:
        negatives: Texts and videos that the contrastive loss compares with: those of ``all`` processes, or of the
            ``own`` process as in the released code.
        hard_negatives: True: matching uses wrong videos of the batch that resemble the text. They are drawn with the
            dual encoder's softmax over the others (Li et al., arXiv 2107.07651, section 3.2), which needs the
            projections. False: all are equally likely.
        temperature: Temperature of the contrastive loss and of drawing hard negatives.
        pairs_per_pass: Maximum number of pairs per forward pass of the ranking loss; None: all at once.
    """

    negatives: Literal["all", "own"] = "all"
    hard_negatives: bool = False
    temperature: float = TEMPERATURE
    pairs_per_pass: int | None = None


def task_losses(
    model: AllInOne, batch: Batch, draws: Draws, *, wanted: Sequence[str], settings: LossSettings | None = None
) -> dict[str, Tensor]:
    """Compute the losses named in `wanted`, each 0-dim, in that order.

    Args:
        model: The model, with the heads that the losses need.
        batch: The batch.
        draws: The random choices of the batch, from `meltr_allinone.losses.draws.draw`.
        wanted: Names from `LOSSES`.
        settings: Settings of the losses; None: the defaults.

    Raises:
        ValueError: If a name is unknown, or the batch or the model lacks what a loss needs.
    """
    passes = _Passes(model, batch, draws, settings or LossSettings())
    makers = {
        "answer": passes.answer,
        "vtm": passes.matching,
        "mlm": passes.masked_text,
        "wpa": passes.alignment,
        "contrastive": passes.contrastive,
        "rank": passes.ranking,
    }
    return wanted_losses(makers, wanted)


def similarity(text: Tensor, video: Tensor) -> Tensor:
    """Return the cosines (N, M) of texts (N, P) and videos (M, P), in float32 or higher; lengths are at least 1e-8.

    Args:
        text: Vectors from `AllInOne.text_vectors`.
        video: Vectors from `AllInOne.video_vectors`.
    """
    with torch.autocast(text.device.type, enabled=False):
        unit = [rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-8) for rows in (wide(text), wide(video))]
        return cast(Tensor, unit[0] @ unit[1].T)


def contrastive_loss(text: Tensor, video: Tensor, *, temperature: float = TEMPERATURE) -> Tensor:
    """Return the sum of both directions of the contrastive loss of N texts with their videos, 0-dim.

    L = - mean_i log softmax_j(S_ij / tau)|_{j=i} - mean_j log softmax_i(S_ij / tau)|_{i=j}.

    Args:
        text: (N, P).
        video: (N, P).
        temperature: tau.
    """
    scores = similarity(text, video) / temperature
    return _diagonal(scores) + _diagonal(scores.T)


class _Passes:
    """The forward passes of one batch, each computed when a loss first needs it."""

    def __init__(self, model: AllInOne, batch: Batch, draws: Draws, settings: LossSettings) -> None:
        self.model, self.batch, self.draws, self.settings = model, batch, draws, settings

    @cached_property
    def video(self) -> Tensor:
        """Tokens of the frames, (B, T, l, D)."""
        return self.model.embed_video(self.batch.video)

    @cached_property
    def vectors(self) -> tuple[Tensor, Tensor]:
        """Vectors of texts and videos in the shared space, (B, P) each."""
        self._need("txt_proj", "contrastive")
        return self.model.text_vectors(self.batch.ids), self.model.video_vectors(self.batch.video)

    @cached_property
    def matched(self) -> Tensor:
        """Features of the texts with right and wrong videos, (B, L + l, D)."""
        kept = self.draws.labels.bool()
        if self.batch.false_video is not None:
            chosen = self.batch.video.where(kept[:, None, None, None, None], self.batch.false_video)
            video = self.model.embed_video(chosen)
        else:
            rows = torch.arange(len(kept), device=kept.device)
            video = self.video[torch.where(kept, rows, self._wrong())]
        return self._joined(self.batch.ids, video, self.draws.orders.get("vtm"))

    def matching(self) -> Tensor:
        """Return the loss of distinguishing right from wrong videos."""
        head = self._need("itm_score", "vtm")
        return cross_entropy(head(self.model.pooler(self.matched)), self.draws.labels)

    def alignment(self) -> Tensor:
        """Return 0.1 / B times the alignment distance of right videos minus that of wrong ones."""
        length, first = self.batch.ids.shape[1], self.model.config.aligned_from
        words = aligned_words(self.batch.ids)
        patches = torch.arange(self.matched.shape[1] - length, device=words.device).expand(len(words), -1) >= first
        distance = alignment_distance(
            self.matched[:, :length], self.matched[:, length:], text_mask=words, video_mask=patches
        )
        return ALIGNMENT * (distance * (2 * self.draws.labels - 1)).sum() / len(words)

    def masked_text(self) -> Tensor:
        """Return the loss of the masked tokens."""
        head, hidden = self._need("mlm_score", "mlm"), self.draws.masked
        features = self._joined(hidden.ids, self.video, self.draws.orders.get("mlm"))
        return cross_entropy(head(features[:, : hidden.ids.shape[1]]), hidden.labels)

    def contrastive(self) -> Tensor:
        """Return the loss of the dual encoder."""
        text, video = self.vectors
        if self.settings.negatives == "all":
            text, video = gather(text), gather(video)
        return contrastive_loss(text, video, temperature=self.settings.temperature)

    def ranking(self) -> Tensor:
        """Return the loss of finding each clip's text among wrong texts. The right text comes first."""
        head, size = self._need("rank_output", "rank"), len(self.batch.ids)
        rows = torch.arange(size, device=self.batch.ids.device)
        if self.batch.false_ids is not None:
            ids = torch.cat([self.batch.ids[:, None], self.batch.false_ids], 1).flatten(0, 1)
            texts = torch.arange(len(ids), device=ids.device)
        else:
            ids, texts = self.batch.ids, ((rows[:, None] + rows) % size).flatten()
        clips = rows.repeat_interleave(len(texts) // size)
        pooled = pooled_pairs(
            self.model,
            self.video,
            ids,
            clips=clips,
            texts=texts,
            order=self.draws.orders.get("rank"),
            pairs_per_pass=self.settings.pairs_per_pass,
        )
        return cross_entropy(head(pooled)[:, 0].view(size, -1), torch.zeros_like(rows))

    def answer(self) -> Tensor:
        """Return the loss of the answer classes."""
        if self.batch.answer is None:
            raise ValueError("the loss `answer` needs answers, and the batch has none")
        head = self._need("vqa_classifier", "answer")
        features = self._joined(self.batch.ids, self.video, self.draws.orders.get("answer"))
        return cross_entropy(head(self.model.pooler(features)), self.batch.answer)

    def _wrong(self) -> Tensor:
        """Return the index of a wrong clip for each text, (B,)."""
        size, chances = len(self.batch.ids), self.draws.chances
        if size == 1:
            return torch.zeros_like(self.draws.labels)
        rows = torch.arange(size, device=chances.device)
        if not self.settings.hard_negatives:
            other = (chances * (size - 1)).long().clamp_max(size - 2)
            return other + (other >= rows)
        scores = similarity(*(part.detach() for part in self.vectors)) / self.settings.temperature
        likely = scores.masked_fill(torch.eye(size, dtype=torch.bool, device=scores.device), float("-inf")).softmax(1)
        reached = (likely.cumsum(1) <= chances[:, None].to(likely.dtype)).sum(1).clamp_max(size - 1)
        last = torch.where(rows == size - 1, size - 2, size - 1)  # rounding may leave the sum short of 1
        return torch.where(reached == rows, last, reached)

    def _joined(self, ids: Tensor, video: Tensor, order: Tensor | None) -> Tensor:
        return self.model.join(self.model.embed_text(ids), ids, video, order)

    def _need(self, name: str, loss: str) -> Callable[[Tensor], Tensor]:
        found = getattr(self.model, name)
        if found is None:
            raise ValueError(f"the loss {loss!r} needs {name}, but this model was built without it")
        return cast(Callable[[Tensor], Tensor], found)


def aligned_words(ids: Tensor) -> Tensor:
    """Return a mask of the tokens that take part in alignment, (B, L): all but [CLS], the last one, and padding."""
    seen = ids != PAD
    places = torch.arange(ids.shape[1], device=ids.device)
    return seen & (places > 0) & (places < seen.sum(1, keepdim=True) - 1)


def _diagonal(scores: Tensor) -> Tensor:
    return F.cross_entropy(scores, torch.arange(len(scores), device=scores.device))
