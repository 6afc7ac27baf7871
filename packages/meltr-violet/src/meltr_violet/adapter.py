"""The run-tier hooks of the VIOLET backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from meltr.context import Data, Evaluation, Prediction, PredictRequest, RunContext
from meltr.hookspecs import hookimpl
from meltr_violet import building, evaluation, predicting
from meltr_violet.data import splits as data
from meltr_violet.data.examples import Split, as_batch
from meltr_violet.losses.tasks import LossSettings, draw_batch_masks, task_losses
from meltr_violet.model.violet import Violet
from meltr_violet.options import VioletOptions


class VioletAdapter:
    """Question answering, retrieval and action recognition with VIOLET."""

    @hookimpl
    def build_data(self, context: RunContext) -> Data:
        """Read the data set and cut its splits; without visual codes the loss ``mvm`` is left out."""
        return data.build_data(context)

    @hookimpl
    def build_model(self, context: RunContext, data: Data) -> nn.Module:
        """Return the model with the heads that task and losses need, pretrained weights loaded unless some follow."""
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
    def model_blocks(self, model: Violet) -> Sequence[nn.Module]:
        """Return the blocks of Video Swin and the layers of the transformer."""
        return model.blocks()

    @hookimpl
    def compute_task_losses(self, model: Violet, batch: Mapping[str, Tensor], context: RunContext) -> dict[str, Tensor]:
        """Return the losses named in ``context.losses``; what is masked comes from ``context.generator``."""
        settings, ready = _settings(context.options), as_batch(batch)
        masks = draw_batch_masks(ready, model.config.cell, settings=settings, generator=context.generator)
        return task_losses(model, ready, masks, wanted=context.losses, settings=settings)

    @hookimpl
    def evaluate(self, model: Violet, data: Split, context: RunContext) -> Evaluation:
        """Return accuracy, retrieval metrics in both directions, or top-1 and top-5 accuracy."""
        options: VioletOptions = context.options
        return evaluation.evaluate(
            model,
            data,
            task=context.spec.task,
            device=context.device,
            batch_size=options.eval_batch_size,
            pairs_per_pass=options.pairs_per_pass,
            rows=options.save_predictions,
        )

    @hookimpl
    def predict(self, model: Violet, request: PredictRequest, data: Data, context: RunContext) -> Prediction:
        """Return the best answers or classes for every video, or videos ranked by a text."""
        return predicting.predict(model, request, data.meta, context)


def _settings(options: VioletOptions) -> LossSettings:
    return LossSettings(
        clip=options.clip,
        released_choice=options.released_choice,
        negatives=options.negatives,
        temperature=options.temperature,
        pairs_per_pass=options.pairs_per_pass,
    )
