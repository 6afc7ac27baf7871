"""The losses of a batch: matching, alignment, masked text, contrastive, ranking and answering, with shared passes.

Wang et al., arXiv 2203.07303, section 3.3, in the form of public repository showlab/all-in-one. Frames are embedded
once however many losses and pairs read them; matching and alignment share a pass.
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
from meltr.video.losses import cross_entropy, wide
from meltr.video.text.wordpiece import PAD
from meltr_allinone.data.transforms import Normalisation, normalised
from meltr_allinone.losses.alignment import alignment_distance
from meltr_allinone.losses.draws import Draws
from meltr_allinone.model.all_in_one import AllInOne
from meltr_allinone.model.scoring import pooled_pairs

LOSSES = ("answer", "vtm", "mlm", "wpa", "contrastive", "rank")
"""Names that `task_losses` knows."""

TEMPERATURE = 0.05
"""Similarities are divided by it in the contrastive loss."""

ALIGNMENT = 0.1
"""Weight of word-patch alignment."""


@dataclass(frozen=True)
class Batch:
    """Clips with their texts.

    Args:
        video: (B, T, 3, S, S), normalised.
        ids: Token ids (B, L).
        answer: Number of the right answer, (B,), -100 for one that is no class; None where there are no questions.
        continues: True where a token goes on with the word before, (B, L); None: tokens are masked one by one.
        false_video: A wrong clip for each text, normalised, (B, T, 3, S, S); None: those of the batch.
        false_ids: Wrong texts of each clip, (B, F, L); None: those of the batch.
    """

    video: Tensor
    ids: Tensor
    answer: Tensor | None = None
    continues: Tensor | None = None
    false_video: Tensor | None = None
    false_ids: Tensor | None = None


def as_batch(columns: Mapping[str, Tensor], normalisation: Normalisation = "imagenet") -> Batch:
    """Return the columns of a batch of `meltr_allinone.data.encoder.WithWrong`, its videos normalised."""
    videos = ("video", "false_video")
    return Batch(**{key: normalised(part, normalisation) if key in videos else part for key, part in columns.items()})


@dataclass(frozen=True)
class LossSettings:
    """How the losses are made.

    Args:
        negatives: What the contrastive loss compares with: texts and videos of ``all`` processes, or of the ``own`` one
            as released.
        hard_negatives: Matching takes wrong videos of the batch that resemble the text: drawn in proportion to the
            dual encoder's softmax over the others (Li et al., arXiv 2107.07651, section 3.2), which needs the
            projections. Otherwise any is as likely.
        temperature: Of the contrastive loss and of drawing hard negatives.
        pairs_per_pass: Most pairs that the ranking loss lets through the model at a time; None: all at once.
    """

    negatives: Literal["all", "own"] = "all"
    hard_negatives: bool = False
    temperature: float = TEMPERATURE
    pairs_per_pass: int | None = None


def task_losses(
    model: AllInOne, batch: Batch, draws: Draws, *, wanted: Sequence[str], settings: LossSettings | None = None
) -> dict[str, Tensor]:
    """Return the losses named in `wanted`, each 0-dim, in that order.

    Args:
        model: The model, with the heads that the losses need.
        batch: The batch.
        draws: Its random choices, from `meltr_allinone.losses.draws.draw`.
        wanted: Some of `LOSSES`.
        settings: How they are made; None: the defaults.

    Raises:
        ValueError: If a name is unknown, or the batch or the model lacks what a loss needs.
    """
    passes = _Passes(model, batch, draws, settings or LossSettings())
    makers: dict[str, Callable[[], Tensor]] = {
        "answer": passes.answer,
        "vtm": passes.matching,
        "mlm": passes.masked_text,
        "wpa": passes.alignment,
        "contrastive": passes.contrastive,
        "rank": passes.ranking,
    }
    unknown = [name for name in wanted if name not in makers]
    if unknown:
        raise ValueError(f"no losses {unknown}: expected some of {LOSSES}")
    return {name: makers[name]() for name in wanted}


def similarity(text: Tensor, video: Tensor) -> Tensor:
    """Return the cosines of texts (N, P) and videos (M, P), (N, M), in float32 at least; lengths count as 1e-8 or more.

    Args:
        text: `AllInOne.text_vectors`.
        video: `AllInOne.video_vectors`.
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
    """The passes of one batch through the model, each made when a loss first needs it."""

    def __init__(self, model: AllInOne, batch: Batch, draws: Draws, settings: LossSettings) -> None:
        self.model, self.batch, self.draws, self.settings = model, batch, draws, settings

    @cached_property
    def video(self) -> Tensor:
        """Tokens of the frames, (B, T, l, D)."""
        return self.model.embed_video(self.batch.video)

    @cached_property
    def vectors(self) -> tuple[Tensor, Tensor]:
        """Texts and videos in the shared space, (B, P) each."""
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
        """Return the loss of telling right from wrong videos."""
        head = self._need("itm_score", "vtm")
        return cross_entropy(head(self.model.pooler(self.matched)), self.draws.labels)

    def alignment(self) -> Tensor:
        """Return 0.1 times the alignment distance of right videos less that of wrong ones, over B."""
        length, first = self.batch.ids.shape[1], self.model.config.aligned_from
        words = aligned_words(self.batch.ids)
        patches = torch.arange(self.matched.shape[1] - length, device=words.device).expand(len(words), -1) >= first
        distance = alignment_distance(
            self.matched[:, :length], self.matched[:, length:], text_mask=words, video_mask=patches
        )
        return ALIGNMENT * (distance * (2 * self.draws.labels - 1)).sum() / len(words)

    def masked_text(self) -> Tensor:
        """Return the loss of the hidden tokens."""
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
        """Return the loss of finding each clip's text among wrong ones; the right one stands first."""
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
        """Return the number of a wrong clip for each text, (B,)."""
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
            raise ValueError(f"this model was built without {name}, which the loss {loss!r} needs")
        return cast(Callable[[Tensor], Tensor], found)


def aligned_words(ids: Tensor) -> Tensor:
    """Return which tokens take part in alignment, (B, L): all but [CLS], the last one, and padding."""
    seen = ids != PAD
    places = torch.arange(ids.shape[1], device=ids.device)
    return seen & (places > 0) & (places < seen.sum(1, keepdim=True) - 1)


def _diagonal(scores: Tensor) -> Tensor:
    return F.cross_entropy(scores, torch.arange(len(scores), device=scores.device))
