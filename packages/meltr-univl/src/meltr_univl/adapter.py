"""The run-tier hooks of the UniVL backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from meltr.context import Data, Evaluation, Prediction, PredictRequest, RunContext
from meltr.hookspecs import hookimpl
from meltr.optim.building import decay_groups
from meltr_univl import building, predicting
from meltr_univl.data import splits as data
from meltr_univl.data.examples import Split
from meltr_univl.evaluation import Evaluator
from meltr_univl.losses.masking import draw_masks
from meltr_univl.losses.tasks import Batch, LossSettings, task_losses
from meltr_univl.model.similarity import PAIRS_PER_PASS
from meltr_univl.model.univl import Univl
from meltr_univl.options import UnivlOptions

NO_DECAY = ("bias", "LayerNorm.weight")
"""Parameters with one of these in their name get no weight decay, as in the public repositories."""


class UnivlAdapter:
    """Retrieval, captioning and sentiment with UniVL."""

    @hookimpl
    def build_data(self, context: RunContext) -> Data:
        """Read the data set and its features, and cut its splits."""
        return data.build_data(context)

    @hookimpl
    def build_model(self, context: RunContext, data: Data) -> nn.Module:
        """Return the model with the parts that are needed, pretrained weights loaded unless some follow."""
        model, lines = building.build_model(
            context.options,
            data.meta,
            task=context.spec.task,
            losses=context.spec.losses,
            weights_follow=context.weights_follow,
        )
        context.notes.extend(lines)
        return model

    @hookimpl
    def parameter_groups(self, model: Univl, context: RunContext) -> Sequence[Mapping[str, Any]]:
        """Spare biases and norms weight decay; the text encoder learns ``options.text_lr_scale`` times as fast."""
        return decay_groups(model, spared=NO_DECAY, lr_scales={"bert.": context.options.text_lr_scale})

    @hookimpl
    def model_blocks(self, model: Univl) -> Sequence[nn.Module]:
        """Return the layers of the encoders and of the decoder."""
        return model.blocks()

    @hookimpl
    def compute_task_losses(self, model: Univl, batch: Mapping[str, Tensor], context: RunContext) -> dict[str, Tensor]:
        """Return the losses named in ``context.losses``; what is hidden comes from ``context.generator``."""
        options, ready = context.options, Batch(**batch)
        masks = draw_masks(
            ready.text,
            ready.text_mask,
            ready.video_mask,
            vocabulary=model.config.vocabulary,
            generator=context.generator,
            probability=options.mask_probability,
            at_least_one=options.at_least_one,
        )
        return task_losses(model, ready, masks, wanted=context.losses, settings=_settings(options))

    @hookimpl
    def evaluate(self, model: Univl, data: Split, context: RunContext) -> Evaluation:
        """Return retrieval metrics in both directions, caption scores, or those of sentiment."""
        return _evaluator(context).evaluate(model, data, context.spec.task)

    @hookimpl
    def predict(self, model: Univl, request: PredictRequest, data: Data, context: RunContext) -> Prediction:
        """Return captions or sentiments of videos, or videos ranked by a text."""
        return predicting.predict(model, request, data.meta, context, _evaluator(context))


def _settings(options: UnivlOptions) -> LossSettings:
    return LossSettings(
        joint_loss=options.joint_loss,
        align_loss=options.align_loss,
        margin=options.margin,
        negatives=options.negatives,
        caption_padding=options.caption_padding,
        regression_loss=options.regression_loss,
        pairs_per_pass=options.pairs_per_pass,
    )


def _evaluator(context: RunContext) -> Evaluator:
    options: UnivlOptions = context.options
    return Evaluator(
        context.device,
        batch_size=options.eval_batch_size,
        scoring=options.scoring,
        pairs_per_pass=options.pairs_per_pass or PAIRS_PER_PASS,
        beams=options.beams,
        rows=options.save_predictions,
    )
