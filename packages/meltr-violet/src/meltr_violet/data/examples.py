"""Examples of a task as tensors: squares of a clip, token ids, the right answer, visual codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from meltr.video.corpus import Corpus, Item
from meltr.video.frames.source import FrameSource
from meltr.video.tasks.baselines import Baseline, baseline
from meltr.video.text.wordpiece import Tokenizer
from meltr_violet.data.choice_texts import ChoiceFormat, encode_choices
from meltr_violet.data.codes import CodeSource, FixedCodebook, codes_or_ignored
from meltr_violet.losses.tasks import Batch
from meltr_violet.model.config import IGNORED


@dataclass(frozen=True)
class Texts:
    """How the text and the answer of an item become numbers.

    Args:
        tokenizer: Texts to token ids.
        task: ``qa``, ``retrieval`` or ``action``.
        classes: Answer or class name -> number.
        choice_text: How a question and a choice are put together.
    """

    tokenizer: Tokenizer
    task: str
    classes: Mapping[str, int]
    choice_text: ChoiceFormat = "prompt"

    def ids(self, item: Item, caption: str = "") -> Tensor:
        """Return the token ids of an item, (X,); with choices (O, X). Actions have no text: [CLS] [SEP]."""
        if item.choices and item.question is not None:
            return encode_choices(self.tokenizer, item.question, item.choices, style=self.choice_text)
        text = item.question if self.task == "qa" else caption
        return self.tokenizer.encode([text or ""])[0]

    def answer(self, item: Item) -> int:
        """Return the number of the right choice, answer or class; -100 if it is none of them."""
        if item.choices:
            return IGNORED if item.correct is None else item.correct
        return self.classes.get(item.answer or item.label or "", IGNORED)


class Examples(Dataset[dict[str, Tensor]]):
    """Items with their frames; for retrieval one example a caption.

    Args:
        items: The items.
        texts: How texts become numbers.
        frames: Squares (T, S, S, 3) by the key of a video.
        codes: Visual codes by the key of a video, or made of the squares; None: none.
    """

    def __init__(
        self, items: Sequence[Item], *, texts: Texts, frames: FrameSource, codes: CodeSource | FixedCodebook | None
    ) -> None:
        self.items = items
        self.rows = [(item, caption) for item in items for caption in (item.captions or ("",))]
        if texts.task != "retrieval":
            self.rows = [(item, "") for item in items]
        self._texts, self._frames, self._codes = texts, frames, codes

    def __len__(self) -> int:
        """Examples."""
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return ``frames`` (T, 3, S, S) as bytes, ``ids``, and ``answer`` and ``codes`` (T, h, w) where there are."""
        item, caption = self.rows[index]
        example = {"frames": self.squares(item), "ids": self._texts.ids(item, caption)}
        if self._texts.task != "retrieval":
            example["answer"] = torch.tensor(self._texts.answer(item))
        if self._codes is not None:
            example["codes"] = torch.from_numpy(self._codes_of(item).astype(np.int64))
        return example

    def squares(self, item: Item) -> Tensor:
        """Return the frames of an item, (T, 3, S, S), bytes."""
        return torch.from_numpy(self._frames.frames(item.media)).permute(0, 3, 1, 2)

    def _codes_of(self, item: Item) -> Any:
        assert self._codes is not None
        if isinstance(self._codes, FixedCodebook):
            return self._codes.codes_of(self._frames.frames(item.media))
        return codes_or_ignored(self._codes, item.media)


def as_batch(columns: Mapping[str, Tensor]) -> Batch:
    """Return collated examples as a batch of losses."""
    return Batch(columns["frames"], columns["ids"], answer=columns.get("answer"), codes=columns.get("codes"))


@dataclass(frozen=True)
class Split:
    """A split to be evaluated.

    Args:
        name: ``validation`` or ``test``.
        corpus: The corpus that it belongs to, for baselines.
        examples: Its examples.
        texts: How their texts become numbers.
        classes: Names of the answers or classes, in the order of their numbers.
        workers: Processes that read examples.
    """

    name: str
    corpus: Corpus
    examples: Examples
    texts: Texts
    classes: tuple[str, ...]
    workers: int

    @cached_property
    def baseline(self) -> Baseline:
        """What one gets without looking; found once, not at every evaluation."""
        return baseline(self.corpus, self.name)
