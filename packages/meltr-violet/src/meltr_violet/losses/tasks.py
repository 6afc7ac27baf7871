"""The losses of a batch: matching, masked text, masked video, and answering, with shared encoder passes.

`answer` is the cross-entropy of the right class or choice. `vtm` is that of the right text of each clip among all texts
of the batch, `mtm` that of masked tokens, and `mvm` that of the visual codes of masked cells (Fu et al. 2021, section
3.3). Ko et al. 2023, appendices A.1 and H, say which task has which losses. A clip is encoded once and shared by all
losses and pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from meltr.parallel.gather import gather
from meltr.video.losses import cross_entropy, wanted_losses
from meltr_violet.losses.masking import Masks, black_out, code_targets, draw_cells, draw_masks
from meltr_violet.losses.released import draw_columns, mask_choices, matching_pairs
from meltr_violet.model.scoring import all_pairs, head, pooled_pairs
from meltr_violet.model.violet import Violet

TEMPERATURE = 0.05
"""Temperature, by which the loss divides matching scores; evaluation does not."""

LOSSES = ("answer", "classification", "vtm", "mtm", "mvm")
"""Losses that `task_losses` computes. ``classification`` is ``answer`` with class names instead of answers."""


@dataclass(frozen=True)
class Batch:
    """Clips with their texts.

    Args:
        frames: (B, T, 3, H, W), pixels in [0, 1] or bytes.
        ids: Token ids (B, X); with choices (B, O, X).
        answer: Class, or number of the right choice, (B,); -100 if the answer is not a class.
        codes: Visual codes (B, T, h, w); None: the loss ``mvm`` cannot be computed.
    """

    frames: Tensor
    ids: Tensor
    answer: Tensor | None = None
    codes: Tensor | None = None

    @property
    def own_ids(self) -> Tensor:
        """The text that belongs to each clip, (B, X). With choices, it is the text of the right choice."""
        if self.ids.dim() == 2:
            return self.ids
        return self.ids[torch.arange(len(self.ids), device=self.ids.device), self._right]

    @property
    def own_rows(self) -> Tensor:
        """Index of the clip's own text among all rows of the batch, (B,)."""
        rows = torch.arange(len(self.ids), device=self.ids.device)
        return rows if self.ids.dim() == 2 else rows * self.ids.shape[1] + self._right

    @property
    def rows(self) -> Tensor:
        """All texts, (B, X) or (B O, X)."""
        return self.ids if self.ids.dim() == 2 else self.ids.flatten(0, 1)

    @property
    def clip_of_row(self) -> Tensor:
        """Index of the clip that each text belongs to."""
        return torch.arange(len(self.rows), device=self.ids.device) // (len(self.rows) // len(self.ids))

    @property
    def _right(self) -> Tensor:
        if self.answer is None:
            raise ValueError("a batch with choices needs the index of the right one in `answer`")
        return self.answer.clamp_min(0)


@dataclass(frozen=True)
class LossSettings:
    """Settings of the losses.

    Args:
        clip: Clip that matching and answering see: the ``clean`` one, as the paper describes and the original VIOLET
            does, or the ``masked`` one, as MELTR's released code does by masking the clip in place.
        released_choice: Reproduce the defects of MELTR's released multiple-choice path (see
            `meltr_violet.losses.released`).
        negatives: Texts that matching compares with: those of ``all`` processes, or of the ``own`` process as in the
            released code.
        temperature: Temperature of the matching loss.
        pairs_per_pass: Maximum number of pairs per forward pass of the transformer; None: all at once.
    """

    clip: Literal["clean", "masked"] = "clean"
    released_choice: bool = False
    negatives: Literal["all", "own"] = "all"
    temperature: float = TEMPERATURE
    pairs_per_pass: int | None = None


RELEASED = LossSettings(clip="masked", released_choice=True, negatives="own")
"""Settings of MELTR's released code."""


def draw_batch_masks(
    batch: Batch, cell: int, *, settings: LossSettings | None = None, generator: torch.Generator | None
) -> Masks:
    """Draw the masks of a batch. They do not depend on which losses are wanted.

    Args:
        batch: The batch.
        cell: Pixels on a side of a cell, `ModelConfig.cell`.
        settings: Settings of the losses.
        generator: Source of randomness; None: torch's global one.
    """
    height, width = batch.frames.shape[-2:]
    size = (*batch.frames.shape[:2], -(-height // cell), -(-width // cell))
    if settings is not None and settings.released_choice and batch.ids.dim() == 3:
        ids, targets = mask_choices(batch.ids, draw_columns(batch.ids, generator=generator))
        return Masks(ids, targets, draw_cells(size, device=ids.device, generator=generator))
    return draw_masks(batch.own_ids, size, generator=generator)


def task_losses(
    model: Violet, batch: Batch, masks: Masks, *, wanted: Sequence[str], settings: LossSettings | None = None
) -> dict[str, Tensor]:
    """Compute the losses named in `wanted`, each 0-dim, in that order.

    Args:
        model: The model, with the heads that the losses need.
        batch: The batch.
        masks: The masks of the batch, from `draw_batch_masks`.
        wanted: Names from `LOSSES`, primary first; ``answer`` before ``vtm`` lets both share their passes.
        settings: Settings of the losses; None: the defaults.

    Raises:
        ValueError: If a name is unknown, or the batch or the model lacks what a loss needs.
    """
    passes = _Passes(model, batch, masks, settings or LossSettings())
    makers = {
        "answer": passes.answer,
        "classification": passes.answer,
        "vtm": passes.matching,
        "mtm": passes.masked_text,
        "mvm": passes.masked_video,
    }
    return wanted_losses(makers, wanted)


class _Passes:
    """The encoder passes of one batch, each computed when a loss first needs it."""

    def __init__(self, model: Violet, batch: Batch, masks: Masks, settings: LossSettings) -> None:
        self.model, self.batch, self.masks, self.settings = model, batch, masks, settings
        self.own_states: Tensor | None = None
        self.released = settings.released_choice and batch.ids.dim() == 3

    @cached_property
    def masked_clip(self) -> Tensor:
        """Tokens of the masked clips, (B, T n, D)."""
        return self.model.encode_video(black_out(self.batch.frames, self.masks.cells, self.model.config.cell))

    @cached_property
    def clip(self) -> Tensor:
        """Tokens of the clips that matching and answering see, (B, T n, D)."""
        return self.masked_clip if self.settings.clip == "masked" else self.model.encode_video(self.batch.frames)

    @cached_property
    def text(self) -> Tensor:
        """Embeddings of all texts, (B, X, D) or (B O, X, D)."""
        return self.model.embed_text(self.batch.rows)

    @cached_property
    def masked_states(self) -> Tensor:
        """States of masked clips with masked texts, (R, T n + X, D), one row for each text of `masks`."""
        text, clip = self.model.embed_text(self.masks.ids.flatten(0, -2)), self.masked_clip
        if self.masks.ids.dim() == 2:
            return self.model.join(clip, text, self.batch.own_ids)
        # The released code masks padding too, but padding is still not attended to.
        return self.model.join(clip[self.batch.clip_of_row], text, self.batch.rows)

    def answer(self) -> Tensor:
        """Return the loss of the answer classes or choices."""
        batch = self.batch
        if batch.answer is None:
            raise ValueError("the loss `answer` needs answers, and the batch has none")
        rows = torch.arange(len(batch.rows), device=batch.ids.device)
        states = self._pairs(self.text, batch.rows, batch.clip_of_row, rows)
        self.own_states = states if batch.ids.dim() == 2 else states[batch.own_rows]
        if batch.ids.dim() == 2:
            return cross_entropy(head(self.model, "answer", states), batch.answer)
        return cross_entropy(head(self.model, "choice", states).view(batch.ids.shape[:2]), batch.answer)

    def matching(self) -> Tensor:
        """Return the loss of finding each clip's text among the texts of the batch."""
        scores, targets = self.matching_scores()
        return cross_entropy(scores / self.settings.temperature, targets)

    def matching_scores(self) -> tuple[Tensor, Tensor]:
        """Return the raw scores (B, texts) and the index of the right text, (B,)."""
        size, device = len(self.batch.frames), self.batch.ids.device
        right = torch.arange(size, device=device)
        if self.released:
            clips, texts = matching_pairs(size, self.batch.ids.shape[1], device)
            states = self._pairs(self.text, self.batch.rows, clips.flatten(), texts.flatten())
            return self._scores(states).view(size, size), right
        text, ids = self.text[self.batch.own_rows], self.batch.own_ids
        if self.settings.negatives == "all":
            text, ids = gather(text), gather(ids)
            right = right + (dist.get_rank() * size if len(ids) > size else 0)
        if self.own_states is None:
            clips, texts = all_pairs(size, len(ids), device)
            return self._scores(self._pairs(text, ids, clips, texts)).view(size, -1), right
        own, columns = self._scores(self.own_states)[:, None], torch.arange(len(ids), device=device)
        others = columns[:-1] + (columns[:-1] >= right[:, None])
        clips = torch.arange(size, device=device)[:, None].expand_as(others)
        rest = self._scores(self._pairs(text, ids, clips.flatten(), others.flatten())).view(others.shape)
        place = torch.where(columns == right[:, None], 0, columns + 1 - (columns > right[:, None]).long())
        return torch.cat([own, rest], 1).gather(1, place), right

    def masked_text(self) -> Tensor:
        """Return the loss of the masked tokens."""
        length = self.masks.ids.shape[-1]
        return cross_entropy(head(self.model, "mtm", self.masked_states[:, -length:]), self.masks.text_targets)

    def masked_video(self) -> Tensor:
        """Return the loss of the codes of masked cells."""
        if self.batch.codes is None:
            raise ValueError("the loss `mvm` needs visual codes, and the batch has none")
        states = self.masked_states
        if len(states) != len(self.batch.frames):
            states = states[self.batch.own_rows]
        length = self.masks.ids.shape[-1]
        targets = code_targets(self.batch.codes, self.masks.cells)
        return cross_entropy(head(self.model, "mvm", states[:, :-length]), targets)

    def _pairs(self, text: Tensor, ids: Tensor, clips: Tensor, texts: Tensor) -> Tensor:
        return pooled_pairs(
            self.model, self.clip, text, ids, clips=clips, texts=texts, pairs_per_pass=self.settings.pairs_per_pass
        )

    def _scores(self, states: Tensor) -> Tensor:
        return head(self.model, "vtm", states)[:, 0]
