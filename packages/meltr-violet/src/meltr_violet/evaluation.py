"""Evaluation: accuracy of answers, choices and actions, and retrieval in both directions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from meltr.context import Evaluation
from meltr.metrics.classification import hits, per_class_accuracy, topk_accuracy
from meltr.video.tasks.retrieval import retrieval_metrics
from meltr_violet.data.examples import Split
from meltr_violet.model.scoring import answer_logits, choice_logits, score_pairs
from meltr_violet.model.violet import Violet

PAIRS_PER_PASS = 64


def evaluate(
    model: Violet,
    split: Split,
    *,
    task: str,
    device: torch.device,
    batch_size: int,
    pairs_per_pass: int | None = None,
    rows: bool = True,
) -> Evaluation:
    """Evaluate a split on unmasked clips.

    Args:
        model: The model, in eval mode.
        split: The split.
        task: ``qa``, ``retrieval`` or ``action``.
        device: Where the model is.
        batch_size: Clips a batch.
        pairs_per_pass: Most pairs through the transformer at a time; None: 64.
        rows: Return a row for every example.
    """
    pairs = pairs_per_pass or PAIRS_PER_PASS
    beside = split.baseline
    if task == "retrieval":
        found = _retrieval(model, split, device=device, batch_size=batch_size, pairs=pairs, rows=rows)
    else:
        found = _answers(model, split, task=task, device=device, batch_size=batch_size, pairs=pairs, rows=rows)
    metrics, count, details, predictions = found
    return Evaluation(metrics, count, details, predictions, {beside.name: beside.metrics})


_Found = tuple[dict[str, float], int, dict[str, Any], tuple[Mapping[str, Any], ...]]


def _answers(
    model: Violet, split: Split, *, task: str, device: torch.device, batch_size: int, pairs: int, rows: bool
) -> _Found:
    """Score answers, choices or classes; an answer outside the vocabulary is never right."""
    scores, labels = [], []
    for batch in _batches(split, batch_size, device):
        if batch["ids"].dim() == 3:
            logits = choice_logits(model, batch["frames"], batch["ids"], pairs_per_pass=pairs)
        else:
            logits = answer_logits(model, batch["frames"], batch["ids"])
        scores.append(logits.float().softmax(1).cpu())
        labels.append(batch["answer"].cpu())
    probabilities, right = torch.cat(scores).numpy(), torch.cat(labels).numpy()
    details: dict[str, Any] = {}
    if task == "action":
        metrics = topk_accuracy(probabilities, right)
        accuracies = per_class_accuracy(probabilities, right)
        details["per_class"] = {
            name: None if np.isnan(value) else round(float(value), 2)
            for name, value in zip(split.classes, accuracies, strict=True)
        }
    else:
        metrics = {"accuracy": 100 * float(hits(probabilities, right).mean())}
        if split.classes:
            details["answers_outside_vocabulary"] = int((right < 0).sum())
    predictions = _rows(split, probabilities) if rows else ()
    return metrics, len(right), details, predictions


def _rows(split: Split, probabilities: Any) -> tuple[Mapping[str, Any], ...]:
    found = []
    for item, row in zip(split.examples.items, probabilities, strict=True):
        best = int(row.argmax())
        names = item.choices or split.classes
        truth = item.choices[item.correct] if item.choices and item.correct is not None else item.answer or item.label
        said = {"predicted": names[best], "right": truth, "probability": round(float(row[best]), 4)}
        asked = {} if item.question is None else {"question": item.question}
        found.append({"id": item.id, "video": item.media, **asked, **said})
    return tuple(found)


def _retrieval(model: Violet, split: Split, *, device: torch.device, batch_size: int, pairs: int, rows: bool) -> _Found:
    """Score every text with every clip; each clip is encoded once."""
    items = split.examples.items
    clips = (
        torch.stack([split.examples.squares(item) for item in items[start : start + batch_size]])
        for start in range(0, len(items), batch_size)
    )
    video = torch.cat([model.encode_video(part.to(device)) for part in clips])
    texts = [(number, caption) for number, item in enumerate(items) for caption in item.captions]
    ids = torch.stack([split.texts.ids(items[number], caption) for number, caption in texts])
    similarity = score_pairs(model, video, ids.to(device), pairs_per_pass=pairs).float().cpu().numpy()
    owners = [number for number, _ in texts]
    metrics = retrieval_metrics(similarity, owners)
    if not rows:
        return metrics, len(texts), {}, ()
    best = similarity.argmax(1)
    predictions = tuple(
        {
            "text": caption,
            "video": items[number].media,
            "first": items[place].media,
            "score": round(float(row[place]), 4),
        }
        for (number, caption), place, row in zip(texts, best, similarity, strict=True)
    )
    return metrics, len(texts), {}, predictions


def _batches(split: Split, size: int, device: torch.device) -> Iterator[dict[str, Tensor]]:
    loader: DataLoader[dict[str, Tensor]] = DataLoader(split.examples, batch_size=size, num_workers=split.workers)
    for batch in loader:
        yield {name: column.to(device) for name, column in batch.items()}
