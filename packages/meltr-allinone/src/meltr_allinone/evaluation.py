"""Evaluation: retrieval in both directions, and accuracy of answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from meltr.context import Evaluation
from meltr.metrics.classification import hits
from meltr.video.tasks.retrieval import summary, text_to_video, video_to_text
from meltr_allinone.data.examples import Split
from meltr_allinone.data.transforms import Normalisation, normalised
from meltr_allinone.model.all_in_one import AllInOne
from meltr_allinone.model.retrieval import Retrieval, Scores
from meltr_allinone.model.scoring import answer_logits, seeded_orders


@dataclass(frozen=True)
class Evaluator:
    """How a split is evaluated.

    Args:
        device: Where the model is.
        retrieval: How retrieval scores; its seed of patch orders serves answers too.
        views: Random clips of a video whose scores are averaged.
        batch_size: Clips a batch.
        normalisation: Of colours.
        rows: Return a row for every example.
    """

    device: torch.device
    retrieval: Retrieval
    views: int = 1
    batch_size: int = 16
    normalisation: Normalisation = "imagenet"
    rows: bool = True

    @torch.no_grad()
    def evaluate(self, model: AllInOne, split: Split) -> Evaluation:
        """Evaluate a split.

        Args:
            model: The model, in eval mode.
            split: The split.
        """
        found = self._answers(model, split) if split.texts.asks else self._retrieval(model, split)
        return replace(found, baselines={split.baseline.name: split.baseline.metrics})

    def _retrieval(self, model: AllInOne, split: Split) -> Evaluation:
        owners, ids = split.captions()
        views = [
            self.retrieval.scores(model, ids, (batch["video"] for batch in self._batches(split, view)))
            for view in range(self.views)
        ]
        scores = Scores(*(np.mean(parts, axis=0) for parts in zip(*views, strict=True)))
        backward = summary(video_to_text(scores.of_videos, owners))
        metrics = summary(text_to_video(scores.of_texts, owners))
        metrics |= {f"v2t/{name}": value for name, value in backward.items()}
        return Evaluation(metrics, len(owners), {}, self._found_rows(split, scores) if self.rows else ())

    def _answers(self, model: AllInOne, split: Split) -> Evaluation:
        """An answer outside the vocabulary is never right."""
        scores, labels, start = [], [], 0
        for batch in self._batches(split):
            size, frames = batch["video"].shape[:2]
            orders = seeded_orders(model, size, frames, seed=self.retrieval.order_seed, start=start)
            scores.append(answer_logits(model, batch["video"], batch["ids"], orders=orders).float().softmax(1).cpu())
            labels.append(batch["answer"].cpu())
            start += size
        probabilities, right = torch.cat(scores).numpy(), torch.cat(labels).numpy()
        metrics = {"accuracy": 100 * float(hits(probabilities, right).mean())}
        details: dict[str, Any] = {"answers_outside_vocabulary": int((right < 0).sum())}
        return Evaluation(metrics, len(right), details, self._answer_rows(split, probabilities) if self.rows else ())

    def _batches(self, split: Split, view: int = 0) -> Iterator[dict[str, Tensor]]:
        loader: DataLoader[dict[str, Tensor]] = DataLoader(
            split.clips(view), batch_size=self.batch_size, num_workers=split.workers
        )
        for batch in loader:
            moved = {name: column.to(self.device) for name, column in batch.items()}
            yield moved | {"video": normalised(moved["video"], self.normalisation)}

    def _found_rows(self, split: Split, scores: Scores) -> tuple[Mapping[str, Any], ...]:
        texts = [(item, caption) for item in split.items for caption in item.captions]
        best = scores.of_texts.argmax(1)
        return tuple(
            {
                "text": caption,
                "video": item.media,
                "first": split.items[place].media,
                "score": round(float(row[place]), 4),
            }
            for (item, caption), place, row in zip(texts, best, scores.of_texts, strict=True)
        )

    def _answer_rows(self, split: Split, probabilities: Any) -> tuple[Mapping[str, Any], ...]:
        names = list(split.texts.classes)
        best = probabilities.argmax(1)
        return tuple(
            {
                "id": item.id,
                "video": item.media,
                "question": item.question,
                "predicted": names[place],
                "right": item.answer,
                "probability": round(float(row[place]), 4),
            }
            for item, place, row in zip(split.items, best, probabilities, strict=True)
        )
