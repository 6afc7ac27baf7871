"""The run-tier hooks of video backbones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from meltr.context import Data, Evaluation, Prediction, PredictRequest, RunContext
from meltr.data.loader import LoaderBatches
from meltr.hookspecs import hookimpl
from meltr.seeding import derive
from meltr.video.adapter import evaluation, predicting
from meltr.video.adapter.backbone import Columns, M, VideoBackbone
from meltr.video.adapter.encoder import Encoder, Labels, TextTokenizer
from meltr.video.adapter.source import Source, reading_processes
from meltr.video.adapter.splits import Split
from meltr.video.corpora import cut
from meltr.video.corpus import Corpus


class VideoAdapter(VideoBackbone[M]):
    """Base class of video backbones: implements the hooks; `VideoBackbone` holds what differs.

    A subclass writes methods of `VideoBackbone`. It may also write the optional hooks ``parameter_groups`` and
    ``model_blocks``, marked with `meltr.hookimpl`. The type parameter is the class of the model.
    """

    @hookimpl
    def build_data(self, context: RunContext) -> Data:
        """Read the data set, cut its splits, and choose the vocabulary.

        Raises:
            UserError: If files are missing, broken, or do not fit the settings.
        """
        source = self.open_source(context)
        corpus = cut(source.corpus, context.spec)
        context.notes.extend(corpus.notes)
        tokenizer = self.tokenizer(source.corpus, context)
        encoder = self.encoder(source, tokenizer, labels_of(corpus), context)
        context.notes.extend(self.notes_on_texts(corpus, encoder, context))
        return self._data(context, source, corpus, encoder)

    def _data(self, context: RunContext, source: Source, corpus: Corpus, encoder: Encoder) -> Data:
        spec, workers = context.spec, reading_processes(context, ready=source.ready)

        def batches(split: str) -> LoaderBatches:
            return LoaderBatches(
                encoder.training_set(corpus.splits[split]),
                spec.train.batch_size,
                seed=derive(spec.seed, split),
                rank=context.rank,
                world_size=context.world_size,
                workers=workers,
                skip_broken=spec.data.allow_missing,
            )

        def evaluated(split: str) -> Split | None:
            if split not in corpus.splits:
                return None
            scoring, skip = self.caption_scoring(context.options), spec.data.allow_missing
            return Split(split, corpus, encoder, spec.seed, workers, scoring, skip_broken=skip)

        return Data(
            train=batches("train"),
            validation=evaluated("validation"),
            test=evaluated("test"),
            held_out=batches("held_out") if spec.bilevel.outer_batch == "held_out" else None,
            meta=facts(corpus, encoder.tokenizer, sample=spec.sample) | dict(source.meta),
            left_out={name: why for name, why in source.left_out.items() if name in spec.losses},
        )

    @hookimpl
    def build_model(self, context: RunContext, data: Data) -> nn.Module:
        """Return the model, with pretrained weights loaded unless a checkpoint is loaded afterwards.

        Raises:
            UserError: If a file of weights cannot be read or does not fit, or settings do not fit the model.
        """
        options, model = context.options, self.make_model(data.meta, context)
        if context.weights_follow:
            return model
        reports = [str(report) for report in self.load_weights(model, options)]
        if not reports and not self.from_scratch(options):
            hint = f"--set weights={self.published_weights}"
            reports.append(f"no pretrained weights: the model starts from random ones ({hint})")
        context.notes.extend(reports)
        return model

    @hookimpl
    def compute_task_losses(self, model: M, batch: Columns, context: RunContext) -> dict[str, Tensor]:
        """Return the losses named in ``context.losses``; see `losses`."""
        return self.losses(model, batch, context)

    @hookimpl
    def evaluate(self, model: M, data: Split, context: RunContext) -> Evaluation:
        """Return the metrics of the run's task, and those of a trivial baseline."""
        return evaluation.evaluate(self, model, data, context)

    @hookimpl
    def predict(self, model: M, request: PredictRequest, data: Data, context: RunContext) -> Prediction:
        """Return answers, classes, captions or sentiments of videos, or videos ranked by a text.

        Raises:
            UserError: If the task cannot use an argument, an argument is missing, or a file cannot be read.
        """
        return predicting.predict(self, model, request, data.meta, context)


def labels_of(corpus: Corpus) -> Labels:
    """Return the answers or classes of a corpus as numbers."""
    return Labels(corpus.task, {name: number for number, name in enumerate(corpus.answers)})


def facts(corpus: Corpus, tokenizer: TextTokenizer, *, sample: bool) -> dict[str, Any]:
    """Return the facts about a data set that `VideoBackbone.make_model` and prediction need.

    Args:
        corpus: The examples, in splits.
        tokenizer: The tokenizer, with the vocabulary of the run.
        sample: Whether it is a synthetic sample.
    """
    found: dict[str, Any] = {
        "splits": {name: len(items) for name, items in corpus.splits.items()},
        "videos": len({item.media for items in corpus.splits.values() for item in items}),
        "vocabulary": tokenizer.size,
        "sample": sample,
    }
    choices = next((len(item.choices) for item in corpus.splits["train"] if item.choices), 0)
    named: Mapping[str, Any] = {"choices": choices, "answers": list(corpus.answers)}
    return found | {name: value for name, value in named.items() if value}
