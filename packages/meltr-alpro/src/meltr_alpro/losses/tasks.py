"""The losses of a batch: answering, contrast, matching, masked text and entities of a region, with shared passes.

They are those of Li et al., arXiv 2112.09583, section 3.2. Details follow the public repository salesforce/ALPRO.
Clips and texts are encoded once, and the fusion of a text with its own video serves ``answer``, ``vtm`` and ``pem``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from meltr.parallel.gather import gather
from meltr.video.losses import cross_entropy, wanted_losses, wide
from meltr.video.text.wordpiece import PAD
from meltr_alpro.losses.draws import Draws, black_outside, wrong_pairs
from meltr_alpro.model.alpro import Alpro, similarity

LOSSES = ("answer", "vtc", "vtm", "mlm", "pem")
"""Losses that `task_losses` computes."""


@dataclass(frozen=True)
class Batch:
    """Clips with their texts.

    Args:
        video: (B, T, 3, S, S), bytes or pixels in [0, 1].
        ids: Token ids (B, L).
        answer: Class of the right answer, (B,), -100 for an answer that is not a class; None if there are no questions.
    """

    video: Tensor
    ids: Tensor
    answer: Tensor | None = None


@dataclass(frozen=True)
class LossSettings:
    """Settings of the losses.

    Args:
        negatives: Texts and videos that ``vtc`` compares with: those of ``all`` processes, or of the ``own`` one.
        pem_ignore: Regions that ``pem`` ignores: ``unsure``: those whose best entity has a probability below
            `pem_threshold`; ``released``: those whose best entity is number 0, as the released code does by mistake.
        pem_threshold: Lowest probability of the best entity.
    """

    negatives: Literal["all", "own"] = "all"
    pem_ignore: Literal["unsure", "released"] = "unsure"
    pem_threshold: float = 0.2


def task_losses(
    model: Alpro, batch: Batch, draws: Draws, *, wanted: Sequence[str], settings: LossSettings | None = None
) -> dict[str, Tensor]:
    """Compute the losses named in `wanted`, each 0-dim, in that order.

    Args:
        model: The model, with the heads that the losses need.
        batch: The batch.
        draws: The random choices of the batch, from `meltr_alpro.losses.draws.draw`.
        wanted: Names from `LOSSES`.
        settings: Settings of the losses; None: the defaults.

    Raises:
        ValueError: If a name is unknown, or the batch or the model lacks what a loss needs.
    """
    passes = Passes(model, batch, draws, settings or LossSettings())
    makers = {
        "answer": passes.answer,
        "vtc": passes.contrast,
        "vtm": passes.matching,
        "mlm": passes.masked_text,
        "pem": passes.entities,
    }
    return wanted_losses(makers, wanted)


class Passes:
    """The forward passes of one batch, each computed when a loss first needs it."""

    def __init__(self, model: Alpro, batch: Batch, draws: Draws, settings: LossSettings) -> None:
        self.model, self.batch, self.draws, self.settings = model, batch, draws, settings

    @cached_property
    def video(self) -> Tensor:
        """Tokens of the clips, (B, 1 + N, D)."""
        return self.model.encode_video(self.batch.video)

    @cached_property
    def text(self) -> Tensor:
        """States of the texts alone, (B, L, D)."""
        return self.model.encode_text(self.batch.ids)

    @cached_property
    def vectors(self) -> tuple[Tensor, Tensor]:
        """Unit vectors of videos and of texts, (B, P) each."""
        return self.model.video_vectors(self.video), self.model.text_vectors(self.text)

    @cached_property
    def own(self) -> Tensor:
        """States of the texts with their own videos, (B, L + 1 + N, D)."""
        return self.model.fuse(self.text, self.video, self.batch.ids)

    def answer(self) -> Tensor:
        """Return the loss of the answer classes."""
        if self.batch.answer is None:
            raise ValueError("the loss 'answer' needs answers, and the batch has none")
        return cross_entropy(self._head("classifier", "answer")(self.own[:, 0]), self.batch.answer)

    def contrast(self) -> Tensor:
        """Return the mean of both directions of the contrastive loss, 1/2 [CE(S, diagonal) + CE(S^T, diagonal)]."""
        video, text = self.vectors
        temperature, size = self.model.temperature(), len(video)
        videos, texts = (gather(video), gather(text)) if self.settings.negatives == "all" else (video, text)
        right = torch.arange(size, device=video.device) + (dist.get_rank() * size if len(texts) > size else 0)
        forward = F.cross_entropy(similarity(video, texts, temperature), right)
        return (forward + F.cross_entropy(similarity(text, videos, temperature), right)) / 2

    def matching(self) -> Tensor:
        """Return the loss of telling right from wrong pairs: the mean over right ones and two wrong ones for each."""
        logits, labels = self.matching_logits()
        return cross_entropy(logits, labels)

    def matching_logits(self) -> tuple[Tensor, Tensor]:
        """Return logits (3B, 2) and labels (3B,): right pairs, texts with a wrong video, wrong texts with a video."""
        head, size = self._head("itm_head", "vtm"), len(self.own)
        states = [self.own[:, 0]]
        if size > 1:
            videos, texts = self._wrong()
            rows = torch.cat([torch.arange(size, device=texts.device), texts])
            clips = torch.cat([videos, torch.arange(size, device=texts.device)])
            states.append(self.model.fuse(self.text[rows], self.video[clips], self.batch.ids[rows])[:, 0])
        logits = head(torch.cat(states))
        return logits, (torch.arange(len(logits), device=logits.device) < size).long()

    def _wrong(self) -> tuple[Tensor, Tensor]:
        """Return the wrong video of each text and the wrong text of each video, (B,) each, similar ones more often."""
        video, text = (part.detach() for part in self.vectors)
        scores = similarity(video, text, self.model.temperature().detach())
        return wrong_pairs(scores.T, self.draws.chances[0]), wrong_pairs(scores, self.draws.chances[1])

    def masked_text(self) -> Tensor:
        """Return the loss of the masked tokens."""
        return cross_entropy(self.masked_logits(), self.draws.masked.labels)

    def masked_logits(self) -> Tensor:
        """Return the logits of the tokens of the masked texts with their whole videos, (B, L, V)."""
        head, ids = self._head("mlm_head", "mlm"), self.draws.masked.ids
        text = self.model.encode_text(ids, self.batch.ids != PAD)
        states = self.model.fuse(text, self.video, self.batch.ids)[:, : ids.shape[1]]
        return head(states, self.model.text_encoder.embeddings.word_embeddings.weight)

    def entities(self) -> Tensor:
        """Return the loss of the entities that the prompter sees in a region."""
        self._head("mpm_head", "pem")
        assert self.model.prompter is not None
        crop = black_outside(self.batch.video, self.draws.region, self.model.config.patch)
        return soft_cross_entropy(self.entity_logits(), self.model.prompter(crop), settings=self.settings)

    def entity_logits(self) -> Tensor:
        """Return the logits of the entities of a region, from the mean of its patches in the fusion, (B, E)."""
        inside = self.draws.region.flatten(1).to(self.own.dtype)[:, :, None]
        patches = self.own[:, self.batch.ids.shape[1] + 1 :]
        return self._head("mpm_head", "pem")((patches * inside).sum(1) / inside.sum(1))

    def _head(self, name: str, loss: str) -> Callable[..., Tensor]:
        found = getattr(self.model, name)
        if found is None:
            raise ValueError(f"the loss {loss!r} needs {name}, but this model was built without it")
        return cast(Callable[..., Tensor], found)


def soft_cross_entropy(logits: Tensor, likely: Tensor, *, settings: LossSettings) -> Tensor:
    """Return the mean of -sum_e p_e log softmax(logits)_e over the rows that count, in float32 at least; 0 if none do.

    Args:
        logits: (B, E).
        likely: p, the probabilities of the entities, (B, E).
        settings: Which rows count.
    """
    best = likely.max(1)
    ignored = best.indices == 0 if settings.pem_ignore == "released" else best.values < settings.pem_threshold
    each = -(likely * F.log_softmax(wide(logits), 1)).sum(1)
    return each.masked_fill(ignored, 0).sum() / (~ignored).sum().clamp_min(1)
