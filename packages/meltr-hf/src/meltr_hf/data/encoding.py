"""Texts and targets as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from meltr.texts import TextEncoder, TextItem
from meltr.texts.batches import padded
from meltr.texts.losses import IGNORED
from meltr_hf.data.marks import Marks
from meltr_hf.names import Kind


class Tokens(TextEncoder):
    """Turns texts into tensors, with a tokenizer of transformers.

    Args:
        tokenizer: The tokenizer.
        marks: Its marks.
        kind: Kind of the model.
        text_length: Most tokens of a text.
        target_length: Most tokens of a target.
    """

    def __init__(self, tokenizer: Any, marks: Marks, kind: Kind, *, text_length: int, target_length: int) -> None:
        self.tokenizer, self.marks, self.kind = tokenizer, marks, kind
        self.text_length, self.target_length = text_length, target_length

    def texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Return ``ids`` and ``mask`` (1: a token, 0: padding at the end), both (B, L)."""
        ids, mask = padded(self._ids(texts, self.text_length), self.marks.pad)
        return {"ids": ids, "mask": mask}

    def prompts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Return what a decoder continues with a target, padded at the start: ``ids`` and ``mask``, both (B, L)."""
        ids, mask = padded(self._prompts(texts), self.marks.pad, left=True)
        return {"ids": ids, "mask": mask}

    def truncated(self, texts: Sequence[str]) -> int:
        """Return how many of the texts are too long."""
        whole = self.tokenizer(list(texts), add_special_tokens=True, truncation=False, verbose=False)["input_ids"]
        return sum(len(ids) > self.text_length for ids in whole)

    def targets(self, items: Sequence[TextItem]) -> dict[str, Tensor]:
        """Return the targets of an encoder-decoder, or the whole sequences of a decoder, -100 where nothing counts.

        Returns:
            ``target`` (B, T), and for decoders ``whole`` and ``whole_mask`` (B, T).
        """
        found = self._ids([item.target for item in items], self.target_length, target=True)
        if self.kind != "decoder":
            return {"target": padded(found, IGNORED)[0]}
        ends = [] if self.marks.end is None else [self.marks.end]
        found = [[*ids[: self.target_length - 1], *ends] if ids[-1:] != ends else ids for ids in found]
        before = self._prompts([item.text for item in items])
        whole, mask = padded([one + other for one, other in zip(before, found, strict=True)], self.marks.pad)
        labels = [[IGNORED] * len(one) + other for one, other in zip(before, found, strict=True)]
        return {"target": padded(labels, IGNORED)[0], "whole": whole, "whole_mask": mask}

    def _prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of texts, each with the token that separates it from its target."""
        ends = [] if self.marks.end is None else [self.marks.end]
        return [ids if ids[-1:] == ends else ids + ends for ids in self._ids(texts, self.text_length)]

    def _ids(self, texts: Sequence[str], length: int, *, target: bool = False) -> list[list[int]]:
        words = {"text_target": list(texts)} if target else {"text": list(texts)}
        found: list[list[int]] = self.tokenizer(**words, truncation=True, max_length=length, verbose=False)["input_ids"]
        unknown = self.marks.end if self.tokenizer.unk_token_id is None else self.tokenizer.unk_token_id
        return [list(ids) or [self.marks.pad if unknown is None else unknown] for ids in found]
