"""The run hooks of the backbone hf."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from meltr.context import Data, Evaluation, Prediction, PredictRequest, RunContext
from meltr.hookspecs import hookimpl
from meltr.texts import TextCorpus, TextItem, cut, evaluation, open_texts, predicted, texts_of, writings, written
from meltr_hf.answers import about_columns, features_of, write
from meltr_hf.data.columns import Column
from meltr_hf.data.encoding import TextEncoder
from meltr_hf.data.marks import marks_of
from meltr_hf.data.splits import columns_in, make_data, texts_for_words
from meltr_hf.losses.corruption import draw
from meltr_hf.losses.tasks import TextLosses
from meltr_hf.model.building import build_network
from meltr_hf.model.kind import kind_of
from meltr_hf.model.network import Network
from meltr_hf.model.tiny import tiny_config, tiny_tokenizer
from meltr_hf.names import CLASSIFYING, TINY, WRITING
from meltr_hf.weights.pretrained import load_config, load_tokenizer, save_settings

FOLDER = "model"
"""Folder below that of a run with the configuration and the tokenizer, so that `predict` needs nothing else."""


class HfAdapter:
    """Classification of texts, and texts for texts, with a model of transformers."""

    config: Any
    encoder: TextEncoder
    corpus: TextCorpus

    @hookimpl
    def build_data(self, context: RunContext) -> Data:
        """Read the table, and the tokenizer of the model."""
        self.corpus = corpus = cut(open_texts(context.spec), context.spec)
        self._read_settings(context, texts_for_words(corpus, context.spec.task))
        columns, useless = columns_in(corpus, context)
        return make_data(corpus, self.encoder, columns, useless, context)

    @hookimpl
    def build_model(self, context: RunContext, data: Data) -> nn.Module:
        """Return the model with the heads of the losses in use."""
        if not hasattr(self, "encoder"):
            self._read_settings(context, ())
        self.columns = [Column.from_json(each) for each in data.meta["columns"]]
        more = {"classes": len(data.meta["classes"]), "vocabulary": self.encoder.marks.vocabulary}
        return build_network(context, self.config, self.encoder.kind, columns=self.columns, **more)

    @hookimpl
    def parameter_groups(self, model: Network, context: RunContext) -> Sequence[Mapping[str, Any]]:
        """Return the weights of the model and those of the heads; biases and norms are not decayed."""
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                scale = 1.0 if name.startswith("pretrained.") else context.options.head_lr_scale
                groups.setdefault((scale, parameter.dim() > 1), []).append(parameter)
        return [
            {"params": parameters, "lr_scale": scale, **({} if decay else {"weight_decay": 0.0})}
            for (scale, decay), parameters in groups.items()
        ]

    @hookimpl
    def model_blocks(self, model: Network) -> Sequence[nn.Module]:
        """Return the layers of the model."""
        return model.blocks()

    @hookimpl
    def compute_task_losses(
        self, model: Network, batch: Mapping[str, Tensor], context: RunContext
    ) -> dict[str, Tensor]:
        """Return the losses named in ``context.losses``."""
        drawn = draw(batch["ids"], context.generator)
        losses = TextLosses(model, batch, drawn, self.encoder.marks, self.columns, context.options)
        return losses.losses(context.losses)

    @hookimpl
    def evaluate(self, model: Network, data: Sequence[TextItem], context: RunContext) -> Evaluation:
        """Return the metrics of the task, and in the details how well further columns are told."""
        texts = [item.text for item in data]
        more = (context.options, context.device)
        if context.spec.task == WRITING:
            outputs = [found[0] for found in write(model, self.encoder, texts, *more)]
            result = written(self.corpus, data, outputs)
        if context.spec.task == CLASSIFYING or self.columns:
            features = features_of(model, self.encoder, texts, *more)
        if context.spec.task == CLASSIFYING:
            guesses = model.heads["classification"](features).argmax(1).tolist()
            result = evaluation(self.corpus, data, guesses)
        details = {"columns": about_columns(model, features, data, self.columns)} if self.columns else {}
        return Evaluation(
            metrics=result.metrics,
            count=result.count,
            details=details,
            predictions=result.predictions,
            baselines=result.baselines,
        )

    @hookimpl
    def predict(self, model: Network, request: PredictRequest, data: Data, context: RunContext) -> Prediction:
        """Return the most probable classes of every text, or what the model writes for it."""
        texts = texts_of(request)
        more = (context.options, context.device)
        if context.spec.task == WRITING:
            return writings(texts, write(model, self.encoder, texts, *more, top=request.top))
        logits = model.heads["classification"](features_of(model, self.encoder, texts, *more)).float()
        return predicted(texts, logits.softmax(1).tolist(), data.meta["classes"], top=request.top)

    def _read_settings(self, context: RunContext, texts: Sequence[str]) -> None:
        """Read configuration and tokenizer: those of the run's folder, if it was trained, or else of the model."""
        options, task = context.options, context.spec.task
        kept = None if context.run_dir is None else context.run_dir / FOLDER
        if context.weights_follow and kept is not None and kept.is_dir():
            self.config, tokenizer = load_config(str(kept)), load_tokenizer(str(kept))
        elif options.model == TINY:
            tokenizer = tiny_tokenizer(texts, "encoder" if task == CLASSIFYING else "encoder-decoder")
            self.config = tiny_config("encoder" if task == CLASSIFYING else "encoder-decoder", len(tokenizer))
        else:
            self.config, tokenizer = load_config(options.model), load_tokenizer(options.model)
        kind = kind_of(self.config, task, options.model)
        marks = marks_of(tokenizer)
        lengths = {"text_length": options.text_length, "target_length": options.target_length}
        self.encoder = TextEncoder(tokenizer, marks, kind, **lengths)
        if kept is not None and context.rank == 0 and not context.weights_follow:
            _replace(kept, self.config, tokenizer)


def _replace(folder: Path, config: Any, tokenizer: Any) -> None:
    """Write configuration and tokenizer beside a folder, and then put them in its place."""
    beside = folder.with_name(f".{folder.name}-{os.getpid()}")
    save_settings(config, tokenizer, beside)
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)
