"""Turns items into tensors: token ids of a text, features of a clip, a caption for the decoder, a score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from meltr.video import Encoder, Item, Labels
from meltr_univl.data.texts import Wording
from meltr_univl.features.reading import FeatureReader, Pick, window

Inputs = Literal["v", "v+t"]
"""Input of captioning: the video, or video and transcript."""

Sentences = Literal["all", "one"]
"""Training examples of a clip with several captions: one per caption, or one with a random caption per epoch."""


@dataclass(frozen=True)
class Clips:
    """The part of each clip that the model sees.

    Args:
        source: Features of whole videos.
        length: F, vectors per clip.
        rate: Vectors per second.
        pick: Which vectors of a longer clip to keep.
    """

    source: FeatureReader
    length: int
    rate: float = 1.0
    pick: Pick = "first"

    def clip(self, item: Item) -> tuple[Tensor, Tensor]:
        """Return features (F, D), float32, zero after the end of the clip, and their mask (F,), int64.

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


class UnivlEncoder(Encoder):
    """Turns items into columns: a text, features, and for training a caption for the decoder and a score.

    Retrieval: the caption is the text and the target of the decoder. Captioning: the transcript is the text.
    Sentiment: the transcript is both.

    Args:
        wording: Turns texts into token ids.
        labels: The labels, which include the task.
        clips: Features of clips.
        inputs: Captioning: with or without the transcript.
        no_text: Captioning: the text if there is no transcript. UniVL's prepared YouCook2 uses ``none``.
        sentences: Training: ``all`` captions of an item, or ``one``, drawn separately for text and decoder as in
            UniVL's code, from torch's generator.
    """

    def __init__(
        self,
        wording: Wording,
        labels: Labels,
        *,
        clips: Clips,
        inputs: Inputs = "v",
        no_text: str = "",
        sentences: Sentences = "all",
    ) -> None:
        super().__init__(wording.tokenizer, labels)
        self.wording, self.clips, self.inputs, self.no_text, self.sentences = wording, clips, inputs, no_text, sentences

    def source_text(self, item: Item, caption: str) -> str:
        """Return the text for the text encoder."""
        if self.labels.task == "sentiment":
            return item.transcript or next(iter(item.captions), "")
        if self.labels.task == "retrieval":
            return caption
        return (item.transcript if self.inputs == "v+t" else None) or self.no_text

    def video(self, item: Item, seed: int | None = None) -> dict[str, Tensor]:
        """Return ``video`` (F, D) and ``video_mask`` (F,); nothing is random."""
        video, mask = self.clips.clip(item)
        return {"video": video, "video_mask": mask}

    def text(self, item: Item, caption: str = "") -> dict[str, Tensor]:
        """Return ``text`` and ``text_mask``, (W,)."""
        ids, mask = self.wording.text(self.source_text(item, caption))
        return {"text": ids, "text_mask": mask}

    def example(self, item: Item, caption: str = "", said: str | None = None) -> dict[str, Tensor]:
        """Return an example with ``caption_input``, ``caption_mask``, ``caption_output`` (L,), and ``score`` ().

        Args:
            item: The item.
            caption: Its caption, or one of them.
            said: The caption for the decoder; None: `caption`.
        """
        words = self.source_text(item, caption) if self.labels.task == "sentiment" else caption
        shown, mask, wanted = self.wording.caption(words if said is None else said)
        decoder = {"caption_input": shown, "caption_mask": mask, "caption_output": wanted}
        score = {} if item.score is None else {"score": torch.tensor(float(item.score))}
        return self.text(item, caption) | self.video(item) | decoder | score

    def training_set(self, items: Sequence[Item]) -> Dataset[dict[str, Tensor]]:
        """Return one training example per caption, or one per item with a random caption at every visit."""
        drawn = self.sentences == "one" and self.labels.task != "sentiment"
        return OneSentence(self, items) if drawn else super().training_set(items)

    def reference(self, caption: str) -> str:
        """Return a caption as UniVL's evaluation scores it: lower case, in WordPiece tokens, truncated."""
        return self.wording.reference(caption)


class OneSentence(Dataset[dict[str, Tensor]]):
    """Training examples: one per item, with random captions for text and decoder.

    Args:
        encoder: Turns items into tensors.
        items: The items.
    """

    def __init__(self, encoder: UnivlEncoder, items: Sequence[Item]) -> None:
        self.items, self._encoder = items, encoder

    def __len__(self) -> int:
        """Items."""
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return the columns of an item; see `UnivlEncoder.example`."""
        item = self.items[index]
        if not item.captions:
            return self._encoder.example(item)
        drawn = [item.captions[int(torch.randint(len(item.captions), ()))] for _ in range(2)]
        return self._encoder.example(item, *drawn)
