"""Turns items into tensors: a clip, token ids, the right answer, and wrong clips and texts that losses need.

Random choices in training (frames, the place of the crop, one of the captions, wrong items) come from the global
generators, which `meltr.data.loader.LoaderBatches` seeds for every item. So an example depends only on seed, epoch and
index.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.utils.data import Dataset

from meltr.video import Encoder, Item, Labels
from meltr.video.text.wordpiece import Tokenizer, read_vocabulary
from meltr_allinone.data.augmentation import Augmentation, augment
from meltr_allinone.data.sampling import draws
from meltr_allinone.data.source import Clips
from meltr_allinone.data.transforms import centre_crop, channels_first


@dataclass(frozen=True)
class Wanted:
    """Content of training examples.

    Args:
        size: Side of a frame.
        augmentation: Augmentation of the frames.
        whole_words: Include where tokens continue the previous word.
        false_video: Include a wrong clip of the data set in every example.
        false_texts: Number of wrong texts of the data set in every example.
        any_item: A wrong item may by chance be the right one, as in the released code; otherwise it is of another
            video.
    """

    size: int
    augmentation: Augmentation = "crop"
    whole_words: bool = False
    false_video: bool = False
    false_texts: int = 0
    any_item: bool = False


class AllInOneEncoder(Encoder):
    """Turns items into the columns ``video``, ``ids`` and ``answer``.

    Args:
        tokenizer: Turns texts into token ids, all of length L.
        labels: The right answers as numbers.
        clips: Squares (T, R, R, 3) by the key of a video, R at least ``wanted.size``.
        wanted: Content of training examples.
    """

    tokenizer: Tokenizer

    def __init__(self, tokenizer: Tokenizer, labels: Labels, *, clips: Clips, wanted: Wanted) -> None:
        super().__init__(tokenizer, labels)
        self.wanted, self._clips = wanted, clips

    def video(self, item: Item, seed: int | None = None) -> dict[str, Tensor]:
        """Return ``video`` (T, 3, S, S), bytes: augmented in training, else the centre of frames chosen by `seed`."""
        if seed is None:
            frames = channels_first(self._clips.train.frames(item.media))
            return {"video": augment(frames, self.wanted.size, self.wanted.augmentation)}
        with draws(seed):
            squares = self._clips.evaluation.frames(item.media)
        return {"video": centre_crop(channels_first(squares), self.wanted.size)}

    def text(self, item: Item, caption: str = "") -> dict[str, Tensor]:
        """Return ``ids`` (L,) of the question or the caption."""
        text = item.question or "" if self.labels.task == "qa" else caption
        return {"ids": self.tokenizer.encode([text])[0]}

    def choose(self, item: Item) -> str:
        """Return the question of an item, or one of its captions, drawn from Python's global generator."""
        return item.question or "" if self.labels.task == "qa" else random.choice(item.captions)

    def training_set(self, items: Sequence[Item]) -> Dataset[dict[str, Tensor]]:
        """Return one training example per item, with wrong items if losses need them."""
        return WithWrong(self, items)

    def continues(self, ids: Tensor) -> Tensor:
        """Return where a token continues the previous word; same shape as `ids`, boolean."""
        return self._continuations[ids]

    @cached_property
    def _continuations(self) -> Tensor:
        flags = torch.zeros(self.tokenizer.size, dtype=torch.bool)
        numbers = [number for token, number in read_vocabulary(self.tokenizer.file).items() if token.startswith("##")]
        flags[numbers] = True
        return flags


class WithWrong(Dataset[dict[str, Tensor]]):
    """Training examples: one per question, or for retrieval one per video with a random caption at every visit.

    Args:
        encoder: Turns items into tensors.
        items: The items.
    """

    def __init__(self, encoder: AllInOneEncoder, items: Sequence[Item]) -> None:
        self.items, self._encoder = items, encoder

    def __len__(self) -> int:
        """Examples."""
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return a random training example.

        Returns:
            ``video`` (T, 3, S, S), bytes, and ``ids`` (L,); ``answer`` () for a question; if requested ``continues``
            (L,), ``false_video`` (T, 3, S, S) and ``false_ids`` (F, L).
        """
        item, encoder, wanted = self.items[index], self._encoder, self._encoder.wanted
        example = encoder.video(item) | encoder.text(item, encoder.choose(item)) | encoder.answer(item)
        if wanted.whole_words:
            example["continues"] = encoder.continues(example["ids"])
        if wanted.false_video:
            example["false_video"] = encoder.video(self._another(item))["video"]
        if wanted.false_texts:
            texts = [encoder.choose(self._another(item)) for _ in range(wanted.false_texts)]
            example["false_ids"] = encoder.tokenizer.encode(texts)
        return example

    def _another(self, item: Item) -> Item:
        """Return a random item of another video, all videos equally likely; any item if there is no other video."""
        names = self._media
        number = random.randrange(len(names))
        if not self._encoder.wanted.any_item and len(names) > 1:
            number = random.randrange(len(names) - 1)
            number += number >= self._numbers[item.media]
        return random.choice(self._of_medium[names[number]])

    @cached_property
    def _of_medium(self) -> dict[str, list[Item]]:
        found: dict[str, list[Item]] = {}
        for item in self.items:
            found.setdefault(item.media, []).append(item)
        return found

    @cached_property
    def _media(self) -> list[str]:
        return list(self._of_medium)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self._media)}
