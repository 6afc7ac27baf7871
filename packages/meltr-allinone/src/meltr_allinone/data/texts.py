"""How texts and answers become numbers."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from meltr.metrics.classification import IGNORED
from meltr.video.corpus import Item
from meltr.video.text.wordpiece import Tokenizer, read_vocabulary


@dataclass(frozen=True)
class Texts:
    """WordPiece of bert-base-uncased, and answers as classes.

    Args:
        tokenizer: Texts to token ids, all of the length L.
        task: ``qa`` or ``retrieval``: whether the text of an item is its question or a caption.
        classes: Answer -> number.
    """

    tokenizer: Tokenizer
    task: str
    classes: Mapping[str, int]

    @property
    def asks(self) -> bool:
        """Whether texts are questions."""
        return self.task == "qa"

    def choose(self, item: Item) -> str:
        """Return the question of an item, or one of its captions, drawn from Python's global generator."""
        return item.question or "" if self.asks else random.choice(item.captions)

    def ids(self, text: str) -> Tensor:
        """Return the token ids of a text, (L,)."""
        return self.tokenizer.encode([text])[0]

    def answer(self, item: Item) -> int:
        """Return the number of the right answer; -100 if it is none of the classes, which losses ignore."""
        return self.classes.get(item.answer or "", IGNORED)

    def continues(self, ids: Tensor) -> Tensor:
        """Return where a token goes on with the word before it; shape of `ids`, boolean."""
        return self._continuations[ids]

    @cached_property
    def _continuations(self) -> Tensor:
        flags = torch.zeros(self.tokenizer.size, dtype=torch.bool)
        numbers = [number for token, number in read_vocabulary(self.tokenizer.file).items() if token.startswith("##")]
        flags[numbers] = True
        return flags
