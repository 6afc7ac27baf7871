"""Frames and texts as tensors, as the image processor and the tokenizer of a model make them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from meltr.video import Encoder, Item, Labels
from meltr.video.frames.source import Frames, FrameSource
from meltr_clip.weights.parts import Parts


class Texts:
    """A tokenizer of transformers for texts of a fixed length: a `meltr.video.adapter.encoder.TextTokenizer`.

    Args:
        tokenizer: The tokenizer; None: there are no texts.
        length: X, tokens per text.
    """

    def __init__(self, tokenizer: Any, length: int) -> None:
        self._tokenizer, self.length = tokenizer, length
        self.size = 0 if tokenizer is None else len(tokenizer)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return token ids, (N, X), int64; longer texts are truncated."""
        fixed = {"padding": "max_length", "truncation": True, "max_length": self.length}
        ids: Tensor = self._tokenizer(list(texts), **fixed, return_tensors="pt")["input_ids"]
        return ids

    def count(self, text: str) -> int:
        """Return the number of tokens of `text`; more than X are truncated."""
        return len(self._tokenizer(text, verbose=False)["input_ids"]) if self._tokenizer is not None else 0


def shaped(frames: Frames, parts: Parts) -> Frames:
    """Return frames (T, H, W, 3) in the size that the image processor gives them, (T, H', W', 3), still as bytes.

    What it resizes and crops is done here, once per video; the model rescales and normalises.
    """
    done = parts.images(list(frames), do_rescale=False, do_normalize=False, return_tensors="pt")
    pixels: Tensor = done["pixel_values"]
    if parts.patch is None:
        made: Frames = pixels.reshape(-1, *pixels.shape[-3:]).permute(0, 2, 3, 1).numpy()
        return made
    rows, columns = done["spatial_shapes"][0].tolist()
    grid = pixels[:, : rows * columns].unflatten(2, (parts.patch, parts.patch, 3)).unflatten(1, (rows, columns))
    whole: Frames = grid.transpose(2, 3).flatten(3, 4).flatten(1, 2).numpy()
    return whole


class ClipEncoder(Encoder):
    """Turns items into the columns ``video``, ``ids``, ``group`` and ``answer``, and ``shapes`` for patches.

    Args:
        tokenizer: The tokenizer.
        labels: Numbers of the classes.
        frames: The source of shaped frames.
        parts: The parts of the model.
    """

    def __init__(self, tokenizer: Texts, labels: Labels, frames: FrameSource, parts: Parts) -> None:
        super().__init__(tokenizer, labels)
        self._frames, self._patch = frames, parts.patch
        self._most = parts.images.max_num_patches if parts.patch else 0

    def video(self, item: Item, seed: int | None = None) -> dict[str, Tensor]:
        """Return ``video``: bytes (T, 3, S, S), or patches (T, N, p p 3) with their ``shapes`` (T, 2)."""
        frames = torch.from_numpy(np.ascontiguousarray(self._frames.frames(item.media)))
        if self._patch is None:
            return {"video": frames.permute(0, 3, 1, 2)}
        grid = frames.unflatten(1, (-1, self._patch)).unflatten(3, (-1, self._patch)).transpose(2, 3)
        count, rows, columns = grid.shape[:3]
        video = torch.zeros(count, self._most, 3 * self._patch**2, dtype=torch.uint8)
        video[:, : rows * columns] = grid.flatten(3).flatten(1, 2)
        return {"video": video, "shapes": torch.tensor([[rows, columns]] * count)}

    def text(self, item: Item, caption: str = "") -> dict[str, Tensor]:
        """Return ``ids`` (L,) of a caption; classes have their texts in the model."""
        return {"ids": self.tokenizer.encode([caption])[0]} if self.labels.task == "retrieval" else {}

    def example(self, item: Item, caption: str = "") -> dict[str, Tensor]:
        """Return a training example; ``group`` () is a number of its video, which other captions of it share."""
        columns = super().example(item, caption)
        if self.labels.given:
            return columns
        return columns | {"group": torch.tensor(zlib.crc32(f"{item.media} {item.span}".encode()))}
