"""Examples as tensors: a clip, the ids of a text, the right answer, and wrong clips and texts where losses want them.

What training draws (frames, the place of the crop, one of the captions, wrong items) comes from the global generators,
which `meltr.data.loader.LoaderBatches` seeds for every item: an example depends on seed, epoch and index alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.utils.data import Dataset

from meltr.seeding import derive
from meltr.video.corpus import Corpus, Item
from meltr.video.frames.source import FrameSource
from meltr.video.tasks.baselines import Baseline, baseline
from meltr_allinone.data.augmentation import Augmentation, augment
from meltr_allinone.data.sampling import draws
from meltr_allinone.data.texts import Texts
from meltr_allinone.data.transforms import centre_crop, channels_first


@dataclass(frozen=True)
class Wanted:
    """What training examples hold.

    Args:
        size: Side of a frame.
        augmentation: What is done to the frames.
        whole_words: Tell where tokens go on with the word before.
        false_video: Give every example a wrong clip of the data set.
        false_texts: Wrong texts of the data set for every example.
        any_item: A wrong item may by chance be the right one, as in the released code; else it is of another video.
    """

    size: int
    augmentation: Augmentation = "crop"
    whole_words: bool = False
    false_video: bool = False
    false_texts: int = 0
    any_item: bool = False


class Examples(Dataset[dict[str, Tensor]]):
    """Training examples: a question each, or for retrieval a video each, with one of its captions at every visit.

    Args:
        items: The items.
        texts: How texts and answers become numbers.
        frames: Squares (T, R, R, 3) by the key of a video, R at least ``wanted.size``.
        wanted: What examples hold.
    """

    def __init__(self, items: Sequence[Item], *, texts: Texts, frames: FrameSource, wanted: Wanted) -> None:
        self.items = items
        self._texts, self._frames, self._wanted = texts, frames, wanted

    def __len__(self) -> int:
        """Examples."""
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Draw an example.

        Returns:
            ``video`` (T, 3, S, S), bytes, and ``ids`` (L,); ``answer`` () for a question; as wanted ``continues`` (L,),
            ``false_video`` (T, 3, S, S) and ``false_ids`` (F, L).
        """
        item, wanted = self.items[index], self._wanted
        example = {"video": self._clip(item), "ids": self._texts.ids(self._texts.choose(item))}
        if self._texts.asks:
            example["answer"] = torch.tensor(self._texts.answer(item))
        if wanted.whole_words:
            example["continues"] = self._texts.continues(example["ids"])
        if wanted.false_video:
            example["false_video"] = self._clip(self._another(item))
        if wanted.false_texts:
            texts = [self._texts.choose(self._another(item)) for _ in range(wanted.false_texts)]
            example["false_ids"] = self._texts.tokenizer.encode(texts)
        return example

    def _clip(self, item: Item) -> Tensor:
        frames = channels_first(self._frames.frames(item.media))
        return augment(frames, self._wanted.size, self._wanted.augmentation)

    def _another(self, item: Item) -> Item:
        """Draw an item: one of another video, each video as likely, unless there is none or any will do."""
        names = self._media
        number = random.randrange(len(names))
        if not self._wanted.any_item and len(names) > 1:
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


class Clean(Dataset[dict[str, Tensor]]):
    """Items to be evaluated, with the centre of their frames.

    Args:
        items: The items.
        texts: How texts and answers become numbers.
        frames: Squares (T, R, R, 3) by the key of a video.
        size: Side of a frame.
        seed: What frames are drawn from, together with the item's number: see `meltr_allinone.data.sampling.draws`.
    """

    def __init__(self, items: Sequence[Item], *, texts: Texts, frames: FrameSource, size: int, seed: int) -> None:
        self.items = items
        self._texts, self._frames, self._size, self._seed = texts, frames, size, seed

    def __len__(self) -> int:
        """Items."""
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return ``video`` (T, 3, S, S), bytes; for a question also ``ids`` (L,) and ``answer`` ()."""
        item = self.items[index]
        with draws(derive(self._seed, index)):
            frames = self._frames.frames(item.media)
        example = {"video": centre_crop(channels_first(frames), self._size)}
        if self._texts.asks:
            example |= {"ids": self._texts.ids(item.question or ""), "answer": torch.tensor(self._texts.answer(item))}
        return example


@dataclass(frozen=True)
class Split:
    """A split to be evaluated.

    Args:
        name: ``validation`` or ``test``.
        corpus: The corpus that it belongs to.
        texts: How its texts and answers become numbers.
        frames: Squares (T, R, R, 3) by the key of a video.
        size: Side of a frame.
        seed: Of random views.
        workers: Processes that read clips.
    """

    name: str
    corpus: Corpus
    texts: Texts
    frames: FrameSource
    size: int
    seed: int
    workers: int

    @property
    def items(self) -> tuple[Item, ...]:
        """Its items; for retrieval each is a video."""
        return self.corpus.splits[self.name]

    def clips(self, view: int = 0) -> Clean:
        """Return its items as tensors; random frames are others in another view, and always the same in one."""
        seed = derive(self.seed, self.name, "view", view)
        return Clean(self.items, texts=self.texts, frames=self.frames, size=self.size, seed=seed)

    def captions(self) -> tuple[list[int], Tensor]:
        """Return whose each caption is (the number of its video) and all captions as ids, (N, L)."""
        rows = [(number, caption) for number, item in enumerate(self.items) for caption in item.captions]
        return [number for number, _ in rows], self.texts.tokenizer.encode([caption for _, caption in rows])

    @cached_property
    def baseline(self) -> Baseline:
        """What one gets without looking; found once, not at every evaluation."""
        return baseline(self.corpus, self.name)
