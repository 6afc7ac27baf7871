"""The interface by which a backbone turns items of a corpus into tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from meltr.metrics.classification import IGNORED
from meltr.video.corpus import Item

CAPTIONED = ("retrieval", "captioning")
"""Tasks with one training example per caption."""


class TextTokenizer(Protocol):
    """Turns texts into token ids. `meltr.video.text.wordpiece.Tokenizer` is one; it can be pickled.

    `length` is X, the number of tokens per text, and `size` the number of different tokens.
    """

    length: int
    size: int

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return token ids, (N, X), int64; longer texts are truncated.

        Args:
            texts: N texts.
        """
        ...

    def count(self, text: str) -> int:
        """Return the number of tokens of `text`; more than X are truncated."""
        ...


@dataclass(frozen=True)
class Labels:
    """The right answers of a task as numbers.

    Args:
        task: The task.
        classes: Answer (qa) or class name (action) -> number; empty for other tasks and for multiple choice.
    """

    task: str
    classes: Mapping[str, int]

    @property
    def given(self) -> bool:
        """Whether the task has answers or classes."""
        return self.task in ("qa", "action")

    def number(self, item: Item) -> int:
        """Return the number of the right choice, answer or class; -100, which losses ignore, if there is none."""
        if item.choices:
            return IGNORED if item.correct is None else item.correct
        return self.classes.get(self.right(item) or "", IGNORED)

    def right(self, item: Item) -> str | None:
        """Return the right choice, answer or class as text."""
        if item.choices and item.correct is not None:
            return item.choices[item.correct]
        return item.label if self.task == "action" else item.answer


class Encoder(ABC):
    """Turns items into columns of a batch. `VideoAdapter.encoder` creates one per run.

    Data sets hold it, and processes that read data get a copy, so it must be picklable.

    Args:
        tokenizer: Turns texts into token ids.
        labels: The right answers as numbers.
    """

    def __init__(self, tokenizer: TextTokenizer, labels: Labels) -> None:
        self.tokenizer, self.labels = tokenizer, labels

    @abstractmethod
    def video(self, item: Item, seed: int | None = None) -> dict[str, Tensor]:
        """Return the model's input for an item's video, without a batch dimension.

        Called in training, evaluation and prediction.

        Args:
            item: The item.
            seed: None in training: use the global generators, which are seeded for every example. Otherwise, random
                choices (such as random frames) must depend on this number alone.
        """

    @abstractmethod
    def text(self, item: Item, caption: str = "") -> dict[str, Tensor]:
        """Return the columns of an item's text, without a batch dimension.

        Called in training, evaluation and prediction.

        Args:
            item: The item; `Item.question` and `Item.choices` are its text for question answering.
            caption: One of its captions in retrieval, and in training for captioning; otherwise empty.
        """

    def example(self, item: Item, caption: str = "") -> dict[str, Tensor]:
        """Return a training example: the video, the text, and ``answer`` () if the task has answers or classes.

        Args:
            item: The item.
            caption: The caption of this example; empty if the item has none.
        """
        return self.video(item) | self.text(item, caption) | self.answer(item)

    def evaluated(self, item: Item, seed: int) -> dict[str, Tensor]:
        """Return an example for evaluation. In retrieval it has no text: texts are encoded separately from videos."""
        if self.labels.task == "retrieval":
            return self.video(item, seed)
        return self.video(item, seed) | self.text(item) | self.answer(item)

    def answer(self, item: Item) -> dict[str, Tensor]:
        """Return the column ``answer``: the number of the right answer, (); no column for tasks without answers."""
        return {"answer": torch.tensor(self.labels.number(item))} if self.labels.given else {}

    def training_set(self, items: Sequence[Item]) -> Dataset[dict[str, Tensor]]:
        """Return the training examples of a split; override it if an example needs several items.

        Args:
            items: The items of the split.
        """
        return Examples(self, items)

    def reference(self, caption: str) -> str:
        """Return a reference caption in the form in which the model's captions are scored against it."""
        return caption


class Examples(Dataset[dict[str, Tensor]]):
    """Training examples: one per caption in retrieval and captioning, otherwise one per item.

    Args:
        encoder: Turns them into tensors.
        items: The items.
    """

    def __init__(self, encoder: Encoder, items: Sequence[Item]) -> None:
        self.encoder, self.items = encoder, items
        captioned = encoder.labels.task in CAPTIONED
        self.rows = [(item, caption) for item in items for caption in ((item.captions if captioned else ()) or ("",))]
        """Item and caption of each example."""

    def __len__(self) -> int:
        """Examples."""
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return the columns of an example, without a batch dimension."""
        return self.encoder.example(*self.rows[index])

    def item_name(self, index: int) -> str:
        """Return what an error calls an example."""
        item, _ = self.rows[index]
        return f"{item.id}, video {item.media}"


def stacked(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Any]:
    """Return the columns of several examples, with a leading batch dimension."""
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
