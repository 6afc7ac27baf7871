"""The run hooks of the vision backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from meltr.context import Data, Evaluation, Prediction, PredictRequest, RunContext
from meltr.hookspecs import hookimpl
from meltr.parallel.gather import gather_in_turn
from meltr_vision.building import build_classifier
from meltr_vision.data.batches import EvalSplit
from meltr_vision.data.splits import build_data
from meltr_vision.losses import draw, task_losses
from meltr_vision.model import LABELS, Classifier
from meltr_vision.predicting import classify


class VisionAdapter:
    """Image classification with mixup, rotation and other labels as auxiliary losses."""

    @hookimpl
    def build_data(self, context: RunContext) -> Data:
        """Read the data set onto the device and make its splits."""
        return build_data(context)

    @hookimpl
    def build_model(self, context: RunContext, data: Data) -> nn.Module:
        """Return the classifier. It has a rotation head only if the rotation loss is in use."""
        options = context.options
        if context.weights_follow:
            options = options.model_copy(update={"pretrained": False, "weights_file": None})
        return build_classifier(
            options,
            classes=data.meta["num_classes"],
            channels=data.meta["channels"],
            image_size=data.meta["image_size"],
            rotation="rotation" in context.losses,
            others=data.meta["num_others"] if set(LABELS) & set(context.losses) else 0,
            notes=context.notes,
        )

    @hookimpl
    def parameter_groups(self, model: nn.Module, context: RunContext) -> Sequence[Mapping[str, Any]]:
        """Return the groups of trunk and heads, each split by weight decay if ``decay_all`` is off."""
        options = context.options
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            scale = options.trunk_lr_scale if name.startswith("trunk.") else 1.0
            groups.setdefault((scale, options.decay_all or parameter.dim() > 1), []).append(parameter)
        return [
            {"params": parameters, "lr_scale": scale, **({} if decay else {"weight_decay": 0.0})}
            for (scale, decay), parameters in groups.items()
        ]

    @hookimpl
    def compute_task_losses(
        self, model: nn.Module, batch: Mapping[str, Tensor], context: RunContext
    ) -> dict[str, Tensor]:
        """Compute the losses named in ``context.losses`` with one call of the model."""
        draws = draw(
            context.spec.losses,
            len(batch["label"]),
            alpha=context.options.mixup_alpha,
            all_rotations=context.options.rotation == "all",
            device=batch["image"].device,
            generator=context.generator,
        )
        return task_losses(
            model, batch["image"], batch["label"], wanted=context.losses, draws=draws, others=batch.get("other")
        )

    @hookimpl
    def evaluate(self, model: Classifier, data: EvalSplit, context: RunContext) -> Evaluation:
        """Return ``top1`` and ``top5`` in per cent, and the mean cross-entropy ``loss``.

        With five or fewer classes, ``top5`` is 100. An image with scores that are not finite counts as wrong.
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

    @hookimpl
    def predict(self, model: Classifier, request: PredictRequest, data: Data, context: RunContext) -> Prediction:
        """Return the most probable classes of every image."""
        return classify(model, request, data.meta, batch_size=context.options.eval_batch_size, device=context.device)


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
