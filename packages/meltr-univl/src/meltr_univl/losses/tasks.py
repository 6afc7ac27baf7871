"""The eight losses of MELTR with UniVL, and sentiment regression, with shared passes.

`joint`, `align`, `cmlm`, `cmfm`, `decoder` are UniVL's (Luo et al., arXiv 2002.06353, section 3.2). `m_joint`,
`m_align` and `m_decoder` are the same on masked inputs (Ko et al. 2023, appendix A.1). Plain and masked inputs go
through the encoders in one batch. A pair goes through the cross encoder once and is shared by all losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from meltr.metrics.classification import IGNORED
from meltr.parallel.gather import gather
from meltr.video.losses import cross_entropy, wanted_losses, wide
from meltr.video.text.wordpiece import PAD
from meltr_univl.losses.masking import Masks
from meltr_univl.losses.ranking import margin_ranking, mil_nce, row_cross_entropy
from meltr_univl.model.similarity import joint_similarity, mean_states, pooled_pairs, text_vectors
from meltr_univl.model.univl import Univl

LOSSES = ("joint", "align", "cmlm", "cmfm", "m_joint", "m_align", "decoder", "m_decoder", "score")
"""Losses that `task_losses` computes: the eight in the released order, and sentiment regression."""

MASKED = ("cmlm", "cmfm", "m_joint", "m_align", "m_decoder")
"""Losses on masked inputs."""

UNSEEN = -1e8
"""Added to the noise-contrastive scores of padded frames."""


@dataclass(frozen=True)
class Batch:
    """Clips with their texts and captions.

    Args:
        text: Token ids (B, W).
        text_mask: 1 at real tokens, (B, W), int64.
        video: Features (B, F, D), zero after the end of the clip.
        video_mask: 1 at real frames, (B, F), int64.
        caption_input: [CLS] and the caption, (B, L).
        caption_mask: 1 at real tokens of `caption_input`, (B, L).
        caption_output: The caption and [SEP], (B, L).
        score: Sentiment, (B,); None if there is none.
    """

    text: Tensor
    text_mask: Tensor
    video: Tensor
    video_mask: Tensor
    caption_input: Tensor
    caption_mask: Tensor
    caption_output: Tensor
    score: Tensor | None = None


@dataclass(frozen=True)
class LossSettings:
    """Settings of the losses.

    Args:
        joint_loss: ``margin`` ranking of cosines, or ``mil_nce`` of dot products, as in UniVL's pre-training.
        align_loss: ``cross_entropy`` of each text among the videos, or ``margin`` ranking, as in UniVL's fine-tuning.
        margin: Margin of the ranking loss.
        negatives: Texts and videos to compare with: those of ``all`` processes, or of the ``own`` process as in the
            released code.
        caption_padding: Padding in the caption losses: ``counted`` as in the released code, so that the decoder learns
            to continue with [PAD], which beam search relies on; or ``ignored``.
        regression_loss: Loss of sentiment: ``l1`` or ``mse``.
        pairs_per_pass: Maximum number of pairs per forward pass of the cross encoder; None: all at once.
    """

    joint_loss: Literal["margin", "mil_nce"] = "margin"
    align_loss: Literal["cross_entropy", "margin"] = "cross_entropy"
    margin: float = 0.1
    negatives: Literal["all", "own"] = "all"
    caption_padding: Literal["counted", "ignored"] = "counted"
    regression_loss: Literal["l1", "mse"] = "l1"
    pairs_per_pass: int | None = None


RELEASED = LossSettings(negatives="own")
"""Settings of MELTR's released code."""


def task_losses(
    model: Univl, batch: Batch, masks: Masks, *, wanted: Sequence[str], settings: LossSettings | None = None
) -> dict[str, Tensor]:
    """Compute the losses named in `wanted`, each 0-dim, in that order.

    Args:
        model: The model, with the parts that the losses need.
        batch: The batch.
        masks: The masks of the batch, from `meltr_univl.losses.masking.draw_masks`.
        wanted: Names from `LOSSES`.
        settings: Settings of the losses; None: the defaults.

    Raises:
        ValueError: If a name is unknown, or the batch lacks what a loss needs.
    """
    passes = _Passes(model, batch, masks, wanted, settings or LossSettings())
    makers = {
        "joint": lambda: passes.joint(masked=False),
        "align": lambda: passes.align(masked=False),
        "cmlm": passes.masked_words,
        "cmfm": passes.masked_frames,
        "m_joint": lambda: passes.joint(masked=True),
        "m_align": lambda: passes.align(masked=True),
        "decoder": lambda: passes.captions(masked=False),
        "m_decoder": lambda: passes.captions(masked=True),
        "score": passes.score,
    }
    return wanted_losses(makers, wanted)


class _Side(NamedTuple):
    """Encoded inputs of one kind, plain or masked. Frames are normalised features."""

    frames: Tensor
    text: Tensor
    video: Tensor


class _Passes:
    """The forward passes of one batch, each computed when a loss first needs it."""

    def __init__(self, model: Univl, batch: Batch, masks: Masks, wanted: Sequence[str], settings: LossSettings) -> None:
        self.model, self.batch, self.masks, self.settings = model, batch, masks, settings
        plain = [name for name in wanted if name not in MASKED]
        self.kinds = tuple(bool(kind) for kind in (0, 1) if (set(wanted) & set(MASKED) if kind else plain))
        decoding = {"decoder", "m_decoder"} & set(wanted)
        self.decoded_kinds = tuple(name == "m_decoder" for name in ("decoder", "m_decoder") if name in decoding)
        matched = {"align": False, "decoder": False, "score": False}
        matched |= {"cmlm": True, "cmfm": True, "m_align": True, "m_decoder": True}
        self.matched_kinds = tuple(kind for kind in (False, True) if kind in {matched.get(name) for name in wanted})

    @cached_property
    def sides(self) -> dict[bool, _Side]:
        """Encoded inputs, False -> plain, True -> masked. All go through the encoders in one batch."""
        batch, masks = self.batch, self.masks
        shown = torch.where(masks.frames[..., None], 0.0, batch.video)
        ids = torch.cat([masks.ids if kind else batch.text for kind in self.kinds])
        video = torch.cat([shown if kind else batch.video for kind in self.kinds])
        times = len(self.kinds)
        frames = self.model.normalise(video)
        text = self.model.encode_text(ids, batch.text_mask.repeat(times, 1))
        seen = self.model.encode_video(frames, batch.video_mask.repeat(times, 1))
        parts = (part.chunk(times) for part in (frames, text, seen))
        return {kind: _Side(*side) for kind, side in zip(self.kinds, zip(*parts, strict=True), strict=True)}

    @cached_property
    def matched(self) -> dict[bool, Tensor]:
        """States of the cross encoder for every text with its video, (B, W + F, H); key True for masked inputs."""
        sides = [self.sides[kind] for kind in self.matched_kinds]
        times = len(sides)
        states = self.model.join(
            torch.cat([side.text for side in sides]),
            self.batch.text_mask.repeat(times, 1),
            torch.cat([side.video for side in sides]),
            self.batch.video_mask.repeat(times, 1),
        )
        return dict(zip(self.matched_kinds, states.chunk(times), strict=True))

    @cached_property
    def decoded(self) -> dict[bool, Tensor]:
        """Logits of captions, (B, L, V); key True for masked inputs."""
        batch, times = self.batch, len(self.decoded_kinds)
        memory = torch.cat([self.matched[kind] for kind in self.decoded_kinds])
        mask = torch.cat([batch.text_mask, batch.video_mask], 1).repeat(times, 1)
        logits = self.model.decode(
            batch.caption_input.repeat(times, 1), batch.caption_mask.repeat(times, 1), memory, mask
        )
        return dict(zip(self.decoded_kinds, logits.chunk(times), strict=True))

    def joint(self, *, masked: bool) -> Tensor:
        """Return the loss of the mean states of texts and videos."""
        side, settings = self.sides[masked], self.settings
        text = self._all(text_vectors(side.text, self.batch.text_mask))
        video = self._all(mean_states(side.video, self.batch.video_mask))
        if settings.joint_loss == "mil_nce":
            return mil_nce(joint_similarity(text, video, normalise=False))
        return margin_ranking(joint_similarity(text, video), margin=settings.margin)

    def align(self, *, masked: bool) -> Tensor:
        """Return the loss of the cross encoder's scores of texts and videos."""
        scores, right = self.align_scores(masked=masked)
        if self.settings.align_loss == "margin":
            return margin_ranking(wide(self._all(scores)), margin=self.settings.margin)
        return row_cross_entropy(wide(scores), right)

    def align_scores(self, *, masked: bool) -> tuple[Tensor, Tensor]:
        """Return the scores of this process's texts with all videos, (B, N), and the index of the right video, (B,).

        The pass of every text with its own video is shared with other losses.
        """
        side, batch, model = self.sides[masked], self.batch, self.model
        size, device = len(batch.text), batch.text.device
        video, video_mask = self._all(side.video), self._all(batch.video_mask)
        first = dist.get_rank() * size if len(video) > size else 0
        right = torch.arange(size, device=device) + first
        columns = torch.arange(len(video), device=device)
        others = columns[:-1] + (columns[:-1] >= right[:, None])
        pooled = pooled_pairs(
            model,
            (side.text, batch.text_mask),
            (video, video_mask),
            texts=torch.arange(size, device=device).repeat_interleave(len(video) - 1),
            videos=others.flatten(),
            pairs_per_pass=self.settings.pairs_per_pass,
        )
        own = model.matching(model.pooled(self.matched[masked]))[:, None]
        scores = torch.cat([own, model.matching(pooled).view(size, -1)], 1)
        place = torch.where(columns == right[:, None], 0, columns + 1 - (columns > right[:, None]).long())
        return scores.gather(1, place), right

    def masked_words(self) -> Tensor:
        """Return the loss of the masked words."""
        words = self.matched[True][:, : self.batch.text.shape[1]]
        return cross_entropy(self.model.predict_words(words), self.masks.labels)

    def masked_frames(self) -> Tensor:
        """Return the noise-contrastive loss of finding each masked frame among all frames; 0 if none is masked.

        The targets propagate gradients into the normalisation of frames, as in the released code.
        """
        plain = self.sides[False].frames if False in self.sides else self.model.normalise(self.batch.video)
        predicted = self.model.predict_frames(self.matched[True][:, self.batch.text.shape[1] :])
        hidden, real = self.masks.frames.flatten(), self.batch.video_mask.flatten()
        targets, there = self._all(plain), self._all(self.batch.video_mask).flatten()
        first = dist.get_rank() * len(real) if len(there) > len(real) else 0
        with torch.autocast(plain.device.type, enabled=False):
            scores = wide(predicted).flatten(0, 1) @ wide(targets).flatten(0, 1).T
            scores = scores + (1 - real[:, None] * there) * UNSEEN
            right = torch.arange(len(real), device=real.device) + first
            return cross_entropy(scores, torch.where(hidden, right, IGNORED))

    def captions(self, *, masked: bool) -> Tensor:
        """Return the token-level loss of the captions."""
        ignored = PAD if self.settings.caption_padding == "ignored" else IGNORED
        return cross_entropy(self.decoded[masked], self.batch.caption_output, ignored=ignored)

    def score(self) -> Tensor:
        """Return the loss of the sentiment."""
        if self.batch.score is None:
            raise ValueError("the loss `score` needs sentiments, and the batch has none")
        found = wide(self.model.score(self.model.pooled(self.matched[False])))
        distance = F.l1_loss if self.settings.regression_loss == "l1" else F.mse_loss
        return distance(found, self.batch.score.to(found.dtype))

    def _all(self, rows: Tensor) -> Tensor:
        return gather(rows) if self.settings.negatives == "all" else rows
