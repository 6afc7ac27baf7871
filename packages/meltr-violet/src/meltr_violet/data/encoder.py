"""Turns items into tensors: squares of a clip, token ids, the right answer, visual codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from meltr.video import Encoder, Item, Labels
from meltr.video.frames.source import FrameSource
from meltr.video.text.wordpiece import Tokenizer
from meltr_violet.data.choice_texts import ChoiceFormat, encode_choices
from meltr_violet.data.codes import CodeSource, FixedCodebook, codes_or_ignored
from meltr_violet.losses.tasks import Batch


class VioletEncoder(Encoder):
    """Turns items into the columns ``frames``, ``ids``, ``answer`` and, for training, ``codes``.

    Args:
        tokenizer: Turns texts into token ids.
        labels: The right answers as numbers.
        frames: Squares (T, S, S, 3) by the key of a video.
        codes: Visual codes by the key of a video, or computed from the squares; None: none.
        choice_text: How a question and a choice are combined.
    """

    tokenizer: Tokenizer

    def __init__(
        self,
        tokenizer: Tokenizer,
        labels: Labels,
        *,
        frames: FrameSource,
        codes: CodeSource | FixedCodebook | None = None,
        choice_text: ChoiceFormat = "prompt",
    ) -> None:
        super().__init__(tokenizer, labels)
        self._frames, self._codes, self._choice_text = frames, codes, choice_text

    def video(self, item: Item, seed: int | None = None) -> dict[str, Tensor]:
        """Return ``frames`` (T, 3, S, S), bytes; nothing is random."""
        return {"frames": torch.from_numpy(self._frames.frames(item.media)).permute(0, 3, 1, 2)}

    def text(self, item: Item, caption: str = "") -> dict[str, Tensor]:
        """Return ``ids`` (X,); with choices (O, X). Actions have no text: [CLS] [SEP]."""
        if item.choices and item.question is not None:
            return {"ids": encode_choices(self.tokenizer, item.question, item.choices, style=self._choice_text)}
        text = item.question if self.labels.task == "qa" else caption
        return {"ids": self.tokenizer.encode([text or ""])[0]}

    def example(self, item: Item, caption: str = "") -> dict[str, Tensor]:
        """Return a training example, with ``codes`` (T, h, w) if there are any."""
        columns = super().example(item, caption)
        return columns if self._codes is None else columns | {"codes": self._codes_of(item, self._codes)}

    def _codes_of(self, item: Item, codes: CodeSource | FixedCodebook) -> Tensor:
        found: Any = (
            codes.codes_of(self._frames.frames(item.media))
            if isinstance(codes, FixedCodebook)
            else codes_or_ignored(codes, item.media)
        )
        return torch.from_numpy(found.astype(np.int64))


def as_batch(columns: Mapping[str, Tensor]) -> Batch:
    """Return collated examples as a batch for the losses."""
    return Batch(columns["frames"], columns["ids"], answer=columns.get("answer"), codes=columns.get("codes"))
