"""Examples of a task as tensors: token ids of a text, features of a clip, a caption for the decoder, a score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from meltr.video.corpus import Corpus, Item
from meltr.video.tasks.baselines import Baseline, baseline, one_caption
from meltr.video.tasks.captions import Tokens
from meltr_univl.data.texts import Wording
from meltr_univl.features.reading import FeatureSource, Pick, window

Inputs = Literal["v", "v+t"]
"""What a caption is made of: the video, or video and transcript."""

Sentences = Literal["all", "one"]
"""Training examples of a clip with several captions: one for each, or one with a random caption in each epoch."""


@dataclass(frozen=True)
class Clips:
    """The part of each clip that the model sees.

    Args:
        source: Features of whole videos.
        length: F, vectors of a clip.
        rate: Vectors a second.
        pick: Which ones of a longer clip.
    """

    source: FeatureSource
    length: int
    rate: float = 1.0
    pick: Pick = "first"

    def clip(self, item: Item) -> tuple[Tensor, Tensor]:
        """Return features (F, D), float32, zero behind the end, and their mask (F,), int64.

        Raises:
            KeyError: If the video has no features.
            UserError: If they are damaged.
        """
        features = window(
            self.source.features(item.media), span=item.span, rate=self.rate, length=self.length, pick=self.pick
        )
        padded = torch.zeros(self.length, self.source.record.width)
        padded[: len(features)] = torch.from_numpy(features.copy())
        return padded, (torch.arange(self.length) < len(features)).long()


@dataclass(frozen=True)
class Texts:
    """Which text goes into the text encoder, and which one the decoder is to say.

    Retrieval: the caption, and the same caption. Captioning: the transcript, and the caption. Sentiment: what is said,
    and the same.

    Args:
        task: ``retrieval``, ``captioning`` or ``sentiment``.
        wording: Texts to token ids.
        inputs: Captioning: with the transcript, or without.
        no_text: Captioning: what stands in its place where there is none. UniVL's prepared YouCook2 says ``none``.
    """

    task: str
    wording: Wording
    inputs: Inputs = "v"
    no_text: str = ""

    def pair(self, item: Item, caption: str, said: str | None = None) -> tuple[str, str]:
        """Return the text for the encoder and the one for the decoder.

        Args:
            item: The example.
            caption: Its caption, or one of them.
            said: The caption for the decoder, where that is another one.
        """
        if self.task == "sentiment":
            words = item.transcript or caption
            return words, words
        if self.task == "retrieval":
            return caption, caption if said is None else said
        transcript = item.transcript if self.inputs == "v+t" else None
        return transcript or self.no_text, caption if said is None else said


class Examples(Dataset[dict[str, Tensor]]):
    """Items with their features; one example a caption, or one an item.

    Args:
        items: The items.
        texts: How texts become numbers.
        clips: Features.
        sentences: ``all``: one example for each caption. ``one``: one for each item with a random caption, drawn
            separately for encoder and decoder as in UniVL's code; the draws are torch's.
        first: One example for each item, with its first caption: how captions are evaluated.
    """

    def __init__(
        self, items: Sequence[Item], *, texts: Texts, clips: Clips, sentences: Sentences = "all", first: bool = False
    ) -> None:
        self.items = items
        self.texts, self.clips = texts, clips
        self._random = sentences == "one" and not first and texts.task != "sentiment"
        single = first or self._random or texts.task == "sentiment"
        self.rows = [
            (number, caption)
            for number, item in enumerate(items)
            for caption in ((item.captions[:1] if single else item.captions) or ("",))
        ]
        """Number of the item and caption of each example."""

    def __len__(self) -> int:
        """Examples."""
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return a row of each column of a batch.

        ``text`` and ``text_mask`` (W,), ``video`` (F, D), ``video_mask`` (F,), ``caption_input``, ``caption_mask`` and
        ``caption_output`` (L,), and ``score`` where there is one.
        """
        number, caption = self.rows[index]
        item = self.items[number]
        said = None
        if self._random and item.captions:
            caption, said = (item.captions[int(torch.randint(len(item.captions), ()))] for _ in range(2))
        text, caption = self.texts.pair(item, caption, said)
        ids, mask = self.texts.wording.text(text)
        shown, shown_mask, wanted = self.texts.wording.caption(caption)
        video, video_mask = self.clips.clip(item)
        columns = {
            "text": ids,
            "text_mask": mask,
            "video": video,
            "video_mask": video_mask,
            "caption_input": shown,
            "caption_mask": shown_mask,
            "caption_output": wanted,
        }
        if item.score is not None:
            columns["score"] = torch.tensor(float(item.score))
        return columns


@dataclass(frozen=True)
class Split:
    """A split to be evaluated.

    Args:
        name: ``validation`` or ``test``.
        corpus: The corpus that it belongs to, for baselines.
        examples: Its examples: retrieval has one a caption, other tasks one an item.
        workers: Processes that read examples.
        tokens: How captions are cut for scoring, see `meltr.video.tasks.captions.Tokens`.
        meteor: Whether METEOR is computed.
    """

    name: str
    corpus: Corpus
    examples: Examples
    workers: int = 0
    tokens: Tokens = "whitespace"
    meteor: bool = True

    @property
    def items(self) -> Sequence[Item]:
        """Its items."""
        return self.examples.items

    @cached_property
    def owners(self) -> Tensor:
        """Number of the item that each example belongs to, (N,): the right video of each text in retrieval."""
        return torch.tensor([number for number, _ in self.examples.rows])

    @cached_property
    def references(self) -> dict[str, tuple[str, ...]]:
        """Id of each item -> its captions as UniVL's evaluation scores them: lower case, in pieces, cut."""
        return {item.id: tuple(map(self.examples.texts.wording.reference, item.captions)) for item in self.items}

    @cached_property
    def baseline(self) -> Baseline:
        """What one gets without looking; captions are scored as the model's are, without METEOR."""
        if self.corpus.task != "captioning":
            return baseline(self.corpus, self.name)
        reference = self.examples.texts.wording.reference
        train = [tuple(map(reference, item.captions)) for item in self.corpus.splits["train"]]
        return one_caption(train, self.references, tokens=self.tokens, meteor=False)
