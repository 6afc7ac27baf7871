"""The run hooks of the vision backbone: data, model, losses, evaluation and prediction, each from its own room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from meltr.context import Data, Evaluation, Prediction, PredictRequest, RunContext
from meltr.hookspecs import hookimpl
from meltr.optim.building import decay_groups
from meltr_vision.data.batches import EvalSplit
from meltr_vision.data.splits import build_data
from meltr_vision.evaluation import evaluation
from meltr_vision.losses.draws import draw
from meltr_vision.losses.tasks import task_losses
from meltr_vision.model.building import build_classifier
from meltr_vision.model.classifier import Classifier
from meltr_vision.names import LABELS
from meltr_vision.options import VisionOptions
from meltr_vision.predicting import classify


class VisionAdapter:
    """Image classification with mixup, rotation and other labels as auxiliary losses."""

    @hookimpl
    def build_data(self, context: RunContext) -> Data:
        """Read the data set onto the device and make its splits."""
        return build_data(context)

    @hookimpl
    def build_model(self, context: RunContext, data: Data) -> nn.Module:
        """Return the classifier, with the heads that the losses in use need."""
        options: VisionOptions = context.options
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
        options: VisionOptions = context.options
        spared = () if options.decay_all else None
        return decay_groups(model, spared=spared, lr_scales={"trunk.": options.trunk_lr_scale})

    @hookimpl
    def compute_task_losses(
        self, model: nn.Module, batch: Mapping[str, Tensor], context: RunContext
    ) -> dict[str, Tensor]:
        """Compute the losses named in ``context.losses`` with one call of the model."""
        options: VisionOptions = context.options
        draws = draw(
            context.spec.losses,
            len(batch["label"]),
            alpha=options.mixup_alpha,
            all_rotations=options.rotation == "all",
            device=batch["image"].device,
            generator=context.generator,
        )
        return task_losses(
            model, batch["image"], batch["label"], wanted=context.losses, draws=draws, others=batch.get("other")
        )

    @hookimpl
    def evaluate(self, model: Classifier, data: EvalSplit, context: RunContext) -> Evaluation:
        """Return the accuracies ``top1`` and ``top5`` in per cent, and the mean cross-entropy ``loss``."""
        return evaluation(model, data, context)

    @hookimpl
    def predict(self, model: Classifier, request: PredictRequest, data: Data, context: RunContext) -> Prediction:
        """Return the most probable classes of every image."""
        return classify(model, request, data.meta, batch_size=context.options.eval_batch_size, device=context.device)
