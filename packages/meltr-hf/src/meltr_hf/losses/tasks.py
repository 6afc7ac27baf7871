"""The losses of a batch by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from meltr.texts import Column
from meltr.texts.losses import IGNORED, binary, column_loss, cross_entropy
from meltr_hf.data.marks import Marks
from meltr_hf.losses.contrast import contrast
from meltr_hf.losses.corruption import (
    Changed,
    Draws,
    blank_spans,
    hide,
    remove_spans,
    reorder,
    replace,
    words_in,
)
from meltr_hf.model.network import Network
from meltr_hf.options import HfOptions


class TextLosses:
    """The losses of one batch. The features of the texts are computed once, for all losses that need them.

    Args:
        model: The network.
        batch: ``ids``, ``mask`` (B, L), ``columns`` (B, number of columns), and ``label`` (B,), or ``target`` (B, T)
            with ``whole`` and ``whole_mask`` of a decoder.
        drawn: All random numbers, but those of dropout.
        marks: Tokens that do not stand for words.
        columns: The further columns, in the order of the heads and of ``batch["columns"]``.
        options: Rates and temperature.
    """

    def __init__(
        self,
        model: Network,
        batch: Mapping[str, Tensor],
        drawn: Draws,
        marks: Marks,
        columns: Sequence[Column],
        options: HfOptions,
    ) -> None:
        self.model, self.batch, self.drawn, self.marks, self.options = model, batch, drawn, marks, options
        self.columns = {column.name: (number, column) for number, column in enumerate(columns)}
        self.ids, self.mask = batch["ids"], batch["mask"]

    def losses(self, wanted: Sequence[str]) -> dict[str, Tensor]:
        """Return the losses in the order of their names.

        The first one comes first, so that its dropout is the same whatever else is wanted.
        """
        return {name: self._of_column(name) if name in self.columns else getattr(self, f"_{name}")() for name in wanted}

    @cached_property
    def text(self) -> Tensor:
        """The feature of every text, (B, D)."""
        return self.model.texts(self.ids, self.mask)

    @cached_property
    def words(self) -> Tensor:
        """Where the texts have words, (B, L)."""
        return words_in(self.ids, self.mask, self.marks.special)

    def _classification(self) -> Tensor:
        return cross_entropy(self.model.heads["classification"](self.text), self.batch["label"])

    def _generation(self) -> Tensor:
        target = self.batch["target"]
        if self.model.kind == "decoder":
            logits = self.model.words(self.batch["whole"], self.batch["whole_mask"])
            return cross_entropy(logits[:, :-1], target[:, 1:])
        return cross_entropy(self.model.words(self.ids, self.mask, target), target)

    def _of_column(self, name: str) -> Tensor:
        number, column = self.columns[name]
        return column_loss(column, self.model.columns[number](self.text), self.batch["columns"][:, number])

    def _mlm(self) -> Tensor:
        assert self.marks.mask is not None
        more = {"token": self.marks.mask, "vocabulary": self.marks.vocabulary, "rate": self.options.mask_rate}
        changed = hide(self.ids, self.mask, self.words, self.drawn.tokens[:3], **more)  # type: ignore[arg-type]
        return cross_entropy(self.model.words(changed.ids, changed.mask), changed.wanted)

    def _lm(self) -> Tensor:
        labels = torch.where(self.mask.bool(), self.ids, IGNORED)
        return cross_entropy(self.model.words(self.ids, self.mask)[:, :-1], labels[:, 1:])

    def _denoising(self) -> Tensor:
        changed = self.without_spans()
        return cross_entropy(self.model.words(changed.ids, changed.mask, changed.wanted), changed.wanted)

    def without_spans(self) -> Changed:
        """Return the texts with stand-ins for removed spans, as T5 was trained with, or else with masks, as BART."""
        marks, u = self.marks, self.drawn.tokens[0]
        rate, length = self.options.mask_rate, self.options.span_length
        if len(marks.sentinels) > 1 and marks.end is not None:
            more = {"stand_ins": marks.sentinels, "end": marks.end, "pad": marks.pad}
            return remove_spans(self.ids, self.words, u, rate=rate, length=length, **more)  # type: ignore[arg-type]
        assert marks.mask is not None
        more = {"token": marks.mask, "pad": marks.pad}
        return blank_spans(self.ids, self.mask, self.words, u, rate=rate, length=length, **more)  # type: ignore[arg-type]

    def _contrastive(self) -> Tensor:
        return contrast(self.text, self.model.texts(self.ids, self.mask), self.options.temperature)

    def _replaced(self) -> Tensor:
        u = torch.cat([self.drawn.tokens[:1], self.drawn.tokens[3:5]])  # a list of places would be copied
        changed = replace(self.ids, self.mask, self.words, u, rate=self.options.mask_rate)
        found = self.model.heads["replaced"](self.model.features(changed.ids, changed.mask))
        return binary(found[:, :, 0], changed.wanted)

    def _reordered(self) -> Tensor:
        changed = reorder(self.ids, self.mask, self.words, self.drawn.texts)
        found = self.model.heads["reordered"](self.model.texts(changed.ids, changed.mask))
        return binary(found, changed.wanted)
