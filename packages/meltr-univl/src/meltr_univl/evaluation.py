"""Evaluation: retrieval in both directions, captions by beam search, and sentiment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from meltr.context import Evaluation
from meltr.video.tasks.captions import corpus_scores
from meltr.video.tasks.regression import sentiment_metrics
from meltr.video.tasks.retrieval import retrieval_metrics
from meltr_univl.data.examples import Split
from meltr_univl.model.beam_search import beam_search
from meltr_univl.model.similarity import PAIRS_PER_PASS, align_similarity, joint_similarity, mean_states, text_vectors
from meltr_univl.model.univl import Univl

Scoring = Literal["align", "joint"]


@dataclass(frozen=True)
class Encoded:
    """Encoded examples.

    Args:
        text: States (N, W, H).
        text_mask: (N, W).
        video: States (N, F, H).
        video_mask: (N, F).
    """

    text: Tensor
    text_mask: Tensor
    video: Tensor
    video_mask: Tensor

    @property
    def memory_mask(self) -> Tensor:
        """Mask of texts and videos together, (N, W + F)."""
        return torch.cat([self.text_mask, self.video_mask], 1)


@torch.no_grad()
def encode(model: Univl, columns: Mapping[str, Tensor]) -> Encoded:
    """Encode the texts and videos of a batch, columns as of `meltr_univl.data.examples.Examples`."""
    text_mask, video_mask = columns["text_mask"], columns["video_mask"]
    video = model.encode_video(model.normalise(columns["video"]), video_mask)
    return Encoded(model.encode_text(columns["text"], text_mask), text_mask, video, video_mask)


@torch.no_grad()
def similarity(model: Univl, texts: Encoded, videos: Encoded, *, scoring: Scoring, pairs: int) -> Tensor:
    """Return how well each text fits each video, (N, M).

    Args:
        model: The model, in eval mode.
        texts: Encoded texts (their videos do not count).
        videos: Encoded videos (their texts do not count).
        scoring: ``align`` (a pass for each pair) or ``joint`` (cosines).
        pairs: Most pairs at a time.
    """
    if scoring == "joint":
        return joint_similarity(text_vectors(texts.text, texts.text_mask), mean_states(videos.video, videos.video_mask))
    sides = (texts.text, texts.text_mask), (videos.video, videos.video_mask)
    return align_similarity(model, *sides, pairs_per_pass=pairs)


@torch.no_grad()
def describe(model: Univl, clips: Encoded, *, beams: int, length: int) -> tuple[list[list[list[int]]], Tensor]:
    """Return the hypotheses of each clip, best first, as token ids, and their scores (N, beams)."""
    memory = model.join(clips.text, clips.text_mask, clips.video, clips.video_mask)
    found = beam_search(model, memory, clips.memory_mask, beams=beams, length=length)
    return [[[i for i in row if i >= 0] for row in rows] for rows in found.ids.tolist()], found.scores


@torch.no_grad()
def sentiments(model: Univl, clips: Encoded) -> Tensor:
    """Return the sentiment of each clip, (N,)."""
    return model.score(model.pooled(model.join(clips.text, clips.text_mask, clips.video, clips.video_mask)))


@dataclass(frozen=True)
class Evaluator:
    """How a split is evaluated.

    Args:
        device: Where the model is.
        batch_size: Examples a batch.
        scoring: Of retrieval.
        pairs_per_pass: Most pairs of text and video at a time.
        beams: Hypotheses of beam search.
        rows: Return a row for every example.
    """

    device: torch.device
    batch_size: int = 16
    scoring: Scoring = "align"
    pairs_per_pass: int = PAIRS_PER_PASS
    beams: int = 5
    rows: bool = True

    def evaluate(self, model: Univl, split: Split, task: str) -> Evaluation:
        """Evaluate a split.

        Args:
            model: The model, in eval mode.
            split: The split.
            task: ``retrieval``, ``captioning`` or ``sentiment``.
        """
        found = {"retrieval": self._retrieval, "captioning": self._captions, "sentiment": self._sentiment}[task](
            model, split
        )
        beside = split.baseline
        return replace(found, baselines={beside.name: beside.metrics})

    def _retrieval(self, model: Univl, split: Split) -> Evaluation:
        """Score every text with every video; of a video with several texts, the features are encoded once."""
        whole = self._encoded(model, split)
        owners = split.owners
        first = torch.tensor([owners.tolist().index(number) for number in range(len(split.items))])
        videos = replace(whole, video=whole.video[first], video_mask=whole.video_mask[first])
        scores = similarity(model, whole, videos, scoring=self.scoring, pairs=self.pairs_per_pass)
        matrix = scores.float().cpu().numpy()
        metrics = retrieval_metrics(matrix, owners.tolist())
        rows: list[dict[str, Any]] = []
        if self.rows:
            for (number, caption), row in zip(split.examples.rows, matrix, strict=True):
                place = int(row.argmax())
                found = {"first": split.items[place].media, "score": round(float(row[place]), 4)}
                rows.append({"text": caption, "video": split.items[number].media, **found})
        return Evaluation(metrics, len(owners), {"scoring": self.scoring}, tuple(rows))

    def _captions(self, model: Univl, split: Split) -> Evaluation:
        """Describe every clip, and score the captions against all references of the clip."""
        wording, said, scores = split.examples.texts.wording, [], []
        for columns in self._batches(split):
            length = columns["caption_input"].shape[1]
            ids, values = describe(model, encode(model, columns), beams=self.beams, length=length)
            said += [wording.words(rows[0]) for rows in ids]
            scores += values[:, 0].tolist()
        captions = dict(zip((item.id for item in split.items), said, strict=True))
        found = corpus_scores(captions, split.references, tokens=split.tokens, meteor=split.meteor)
        details = {**found.details(), "beams": self.beams, "references": "lower case, in pieces, cut, as released"}
        rows = [
            {
                "id": item.id,
                "video": item.media,
                "caption": captions[item.id],
                "references": list(split.references[item.id]),
                "log_probability": round(score, 4),
                "cider": round(found.cider[item.id], 2),
            }
            for item, score in zip(split.items, scores, strict=True)
        ]
        return Evaluation(found.metrics, found.count, details, tuple(rows) if self.rows else (), skipped=found.skipped)

    def _sentiment(self, model: Univl, split: Split) -> Evaluation:
        """Predict a number for every clip."""
        found = [sentiments(model, encode(model, columns)).float().cpu() for columns in self._batches(split)]
        scores = torch.cat(found).double().numpy()
        right = np.array([item.score for item in split.items], dtype=np.float64)
        rows = [
            {"id": item.id, "video": item.media, "predicted": round(float(score), 4), "right": item.score}
            for item, score in zip(split.items, scores, strict=True)
        ]
        return Evaluation(sentiment_metrics(scores, right), len(right), {}, tuple(rows) if self.rows else ())

    def _encoded(self, model: Univl, split: Split) -> Encoded:
        parts = [encode(model, columns) for columns in self._batches(split)]
        names = ("text", "text_mask", "video", "video_mask")
        return Encoded(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})

    def _batches(self, split: Split) -> Iterator[dict[str, Tensor]]:
        loader: DataLoader[dict[str, Tensor]] = DataLoader(
            split.examples, batch_size=self.batch_size, num_workers=split.workers
        )
        for batch in loader:
            yield {name: column.to(self.device) for name, column in batch.items()}
