"""The metrics of a split: top-1 and top-5 accuracy, the loss, the accuracy of every class, a row per image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from meltr.context import Evaluation, RunContext
from meltr.parallel.gather import gather_in_turn
from meltr_vision.data.batches import EvalSplit
from meltr_vision.model.classifier import Classifier


def evaluation(model: Classifier, data: EvalSplit, context: RunContext) -> Evaluation:
    """Return ``top1`` and ``top5`` in per cent, and the mean cross-entropy ``loss``; all processes share the images.

    With five or fewer classes, ``top5`` is 100. An image with scores that are not finite counts as wrong.

    Args:
        model: The classifier, in eval mode.
        data: The split.
        context: The run; its options say whether there are accuracies of classes (``per_class``) and rows
            (``save_predictions``).
    """
    batches = data.batches(context.options.eval_batch_size, context.rank, context.world_size)
    own = [_scores(model(images), labels) for images, labels in batches]
    if context.world_size > 1:
        own = gather_in_turn([tuple(part.cpu() for part in each) for each in own], context.world_size)
    loss, predicted, hit1, hit5 = (torch.cat(part).cpu() for part in zip(*own, strict=True))
    labels = data.labels.cpu()[data.indices]
    metrics = {
        "top1": 100 * float(hit1.double().mean()),
        "top5": 100 * float(hit5.double().mean()),
        "loss": float(loss.double().mean()),
    }
    details: dict[str, Any] = {}
    if context.options.per_class:
        details["per_class"] = _per_class(hit1, labels, data.names)
    rows = _rows(data, labels, predicted) if context.options.save_predictions else ()
    return Evaluation(metrics=metrics, count=len(labels), details=details, predictions=rows)


def _scores(logits: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """Return loss, predicted class, top-1 hit and top-5 hit of each image; each (B,)."""
    logits = logits.float()
    finite = logits.isfinite().all(dim=1)
    ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hits = (ranked == labels[:, None]) & finite[:, None]
    loss = nn.functional.cross_entropy(logits, labels, reduction="none")
    return loss, ranked[:, 0], hits[:, 0], hits.any(dim=1)


def _per_class(hits: Tensor, labels: Tensor, names: Sequence[str]) -> dict[str, float | None]:
    """Return class name -> accuracy in per cent; None for a class without examples."""
    total = torch.bincount(labels, minlength=len(names))
    right = torch.bincount(labels[hits], minlength=len(names))
    return {
        name: round(100 * int(part) / int(whole), 2) if whole else None
        for name, part, whole in zip(names, right, total, strict=True)
    }


def _rows(data: EvalSplit, labels: Tensor, predicted: Tensor) -> tuple[dict[str, Any], ...]:
    """Return one row per image. ``index`` is the image's position in the files that the split was read from."""
    rows = []
    for index, label, guess in zip(data.indices.tolist(), labels.tolist(), predicted.tolist(), strict=True):
        row = {"index": index, "label": label, "predicted": guess}
        rows.append({**row, "file": data.files[index]} if data.files else row)
    return tuple(rows)
