"""Texts as batches of tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from meltr.errors import PluginError
from meltr.texts.columns import Column
from meltr.texts.corpus import TextCorpus, TextItem


class TextEncoder(ABC):
    """Turns texts into tensors; a backbone writes a subclass.

    Attributes:
        text_length: Most tokens of a text.
    """

    text_length: int

    @abstractmethod
    def texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Return the columns of a batch for B texts, each with a leading dimension B."""

    def targets(self, items: Sequence[TextItem]) -> dict[str, Tensor]:
        """Return the columns for the targets of B texts, which the task ``text-to-text`` needs."""
        message = f"{type(self).__name__} has no method targets, which the task text-to-text needs."
        raise PluginError(message, "Write it, or remove the task from BackboneInfo.tasks.")

    def truncated(self, texts: Sequence[str]) -> int:
        """Return how many of the texts are too long, so that their ends are not read."""
        return 0

    def facts(self) -> Mapping[str, Any]:
        """Return what a trained run has to remember of this encoder, such as its words; JSON-able."""
        return {}


class Collate:
    """Turns items into a batch.

    Args:
        encoder: Encodes texts.
        classes: Names of the classes; empty: the texts have targets.
        columns: The further columns that are learned.
    """

    def __init__(self, encoder: TextEncoder, classes: Sequence[str], columns: Sequence[Column]) -> None:
        self.encoder, self.columns = encoder, tuple(columns)
        self._names = TextCorpus({}, tuple(classes))

    def __call__(self, items: Sequence[TextItem]) -> dict[str, Tensor]:
        """Return the columns of the encoder, and ``columns``: the cells as numbers, (B, number of columns).

        Texts with classes have ``label`` (B,), others what `TextEncoder.targets` returns.
        """
        batch = self.encoder.texts([item.text for item in items])
        if self._names.classes:
            batch["label"] = torch.tensor([self._names.index_of(item.label) for item in items])
        else:
            batch |= self.encoder.targets(items)
        cells = [[column.value(item.columns.get(column.name)) for column in self.columns] for item in items]
        return {**batch, "columns": torch.tensor(cells).reshape(len(items), len(self.columns))}


def padded(rows: Sequence[Sequence[int]], fill: int, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Return rows of token ids as one tensor, and where they have tokens: 1, or 0 for padding; both (B, L), int64.

    Args:
        rows: B rows of at least one id each; L is the length of the longest.
        fill: Id of the padding.
        left: Pad at the start, not at the end.
    """
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), fill)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for number, row in enumerate(rows):
        part = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[number, part], mask[number, part] = torch.tensor(row), 1
    return ids, mask
