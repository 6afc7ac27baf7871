"""The run-tier hooks of the All-in-one backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from meltr.context import Data, Evaluation, Prediction, PredictRequest, RunContext
from meltr.hookspecs import hookimpl
from meltr.optim.building import decay_groups
from meltr_allinone import building, predicting
from meltr_allinone.data import splits as data
from meltr_allinone.data.examples import Split
from meltr_allinone.evaluation import Evaluator
from meltr_allinone.losses.draws import draw
from meltr_allinone.losses.tasks import LossSettings, as_batch, task_losses
from meltr_allinone.model.all_in_one import AllInOne
from meltr_allinone.model.retrieval import Retrieval
from meltr_allinone.model.scoring import PAIRS_PER_PASS
from meltr_allinone.options import AllInOneOptions

NO_DECAY = ("bias", "LayerNorm.weight", "norm.weight", "norm1.weight", "norm2.weight")
"""Parameters with one of these in their name get no weight decay, as in the public repositories."""


class AllInOneAdapter:
    """Retrieval and question answering with All-in-one."""

    @hookimpl
    def build_data(self, context: RunContext) -> Data:
        """Read the data set and cut its splits."""
        return data.build_data(context)

    @hookimpl
    def build_model(self, context: RunContext, data: Data) -> nn.Module:
        """Return the model with the heads that are needed, pretrained weights loaded unless some follow."""
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
    def parameter_groups(self, model: AllInOne, context: RunContext) -> Sequence[Mapping[str, Any]]:
        """Spare biases and norms weight decay; the answer head learns ``options.answer_lr_scale`` times as fast."""
        scales = {"vqa_classifier": context.options.answer_lr_scale}
        return decay_groups(model, spared=NO_DECAY, lr_scales=scales)

    @hookimpl
    def model_blocks(self, model: AllInOne) -> Sequence[nn.Module]:
        """Return the blocks of the transformer."""
        return model.blocks()

    @hookimpl
    def compute_task_losses(
        self, model: AllInOne, batch: Mapping[str, Tensor], context: RunContext
    ) -> dict[str, Tensor]:
        """Return the losses named in ``context.losses``; all that is drawn comes from ``context.generator``."""
        options: AllInOneOptions = context.options
        ready = as_batch(batch, options.normalisation)
        drawn = draw(
            model,
            ready.ids,
            frames=ready.video.shape[1],
            generator=context.generator,
            continues=ready.continues,
            wrong_texts=None if ready.false_ids is None else ready.false_ids.shape[1],
            random_order=options.patch_order == "random",
        )
        return task_losses(model, ready, drawn, wanted=context.losses, settings=_settings(options))

    @hookimpl
    def evaluate(self, model: AllInOne, data: Split, context: RunContext) -> Evaluation:
        """Return retrieval metrics in both directions, or accuracy."""
        return _evaluator(context).evaluate(model, data)

    @hookimpl
    def predict(self, model: AllInOne, request: PredictRequest, data: Data, context: RunContext) -> Prediction:
        """Return the best answers for every video, or videos ranked by a text."""
        return predicting.predict(model, request, data.meta, context, _evaluator(context))


def _settings(options: AllInOneOptions) -> LossSettings:
    return LossSettings(
        negatives=options.negatives,
        hard_negatives=options.hard_negatives,
        temperature=options.temperature,
        pairs_per_pass=options.pairs_per_pass,
    )


def _evaluator(context: RunContext) -> Evaluator:
    options: AllInOneOptions = context.options
    retrieval = Retrieval(
        scoring=building.scoring_of(options, context.spec.losses),
        rerank=options.rerank,
        order_seed=context.spec.seed if options.patch_order == "random" else None,
        pairs_per_pass=options.pairs_per_pass or PAIRS_PER_PASS,
    )
    return Evaluator(
        context.device,
        retrieval,
        views=options.retrieval_views,
        batch_size=options.eval_batch_size,
        normalisation=options.normalisation,
        rows=options.save_predictions,
    )
