"""Texts and targets as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from meltr.texts import TextCorpus, TextItem
from meltr_hf.data.columns import Column
from meltr_hf.data.marks import Marks
from meltr_hf.names import WRITING, Kind

IGNORED = -100


class TextEncoder:
    """Turns texts into tensors.

    Args:
        tokenizer: A tokenizer of transformers.
        marks: Its marks.
        kind: Kind of the model.
        text_length: Most tokens of a text.
        target_length: Most tokens of a target.
    """

    def __init__(self, tokenizer: Any, marks: Marks, kind: Kind, *, text_length: int, target_length: int) -> None:
        self.tokenizer, self.marks, self.kind = tokenizer, marks, kind
        own = int(tokenizer.model_max_length)
        self.text_length, self.target_length = min(text_length, own), min(target_length, own)

    def texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Return ``ids`` and ``mask`` (1: a token, 0: padding at the end), both (B, L)."""
        return self._padded(self._ids(texts, self.text_length))

    def prompts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Return what a decoder continues with a target, padded at the start: ``ids`` and ``mask``, both (B, L)."""
        return self._padded(self._prompts(texts), left=True)

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
            return {"target": self._padded(found, fill=IGNORED)["ids"]}
        ends = [] if self.marks.end is None else [self.marks.end]
        found = [[*ids[: self.target_length - 1], *ends] if ids[-1:] != ends else ids for ids in found]
        before = self._prompts([item.text for item in items])
        whole = self._padded([one + other for one, other in zip(before, found, strict=True)])
        labels = [[IGNORED] * len(one) + other for one, other in zip(before, found, strict=True)]
        return {
            "target": self._padded(labels, fill=IGNORED)["ids"],
            "whole": whole["ids"],
            "whole_mask": whole["mask"],
        }

    def _prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of texts, each with the token that separates it from its target."""
        ends = [] if self.marks.end is None else [self.marks.end]
        return [ids if ids[-1:] == ends else ids + ends for ids in self._ids(texts, self.text_length)]

    def _ids(self, texts: Sequence[str], length: int, *, target: bool = False) -> list[list[int]]:
        words = {"text_target": list(texts)} if target else {"text": list(texts)}
        found: list[list[int]] = self.tokenizer(**words, truncation=True, max_length=length, verbose=False)["input_ids"]
        unknown = self.marks.end if self.tokenizer.unk_token_id is None else self.tokenizer.unk_token_id
        return [list(ids) or [self.marks.pad if unknown is None else unknown] for ids in found]

    def _padded(self, rows: Sequence[list[int]], *, fill: int | None = None, left: bool = False) -> dict[str, Tensor]:
        longest = max(len(row) for row in rows)
        ids = torch.full((len(rows), longest), self.marks.pad if fill is None else fill)
        mask = torch.zeros(len(rows), longest, dtype=torch.long)
        for number, row in enumerate(rows):
            part = slice(longest - len(row), longest) if left else slice(0, len(row))
            ids[number, part], mask[number, part] = torch.tensor(row), 1
        return {"ids": ids, "mask": mask}


class Collate:
    """Turns items into a batch.

    Args:
        encoder: Encodes texts.
        corpus: Names the classes.
        task: The task.
        columns: Further columns that are learned.
    """

    def __init__(self, encoder: TextEncoder, corpus: TextCorpus, task: str, columns: Sequence[Column]) -> None:
        self.encoder, self.corpus, self.task, self.columns = encoder, corpus, task, tuple(columns)

    def __call__(self, items: Sequence[TextItem]) -> dict[str, Tensor]:
        """Return ``ids``, ``mask``, ``label`` (B,) or the targets, and ``columns`` (B, number of columns)."""
        batch = self.encoder.texts([item.text for item in items])
        if self.task == WRITING:
            batch |= self.encoder.targets(items)
        else:
            batch["label"] = torch.tensor([self.corpus.index_of(item.label) for item in items])
        cells = [[column.value(item.columns.get(column.name)) for column in self.columns] for item in items]
        return {**batch, "columns": torch.tensor(cells).reshape(len(items), len(self.columns))}
