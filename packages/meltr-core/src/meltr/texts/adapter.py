"""The base class of backbones of texts: tables, batches, evaluation and prediction; a subclass has the model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from meltr.context import Data, Evaluation, Prediction, PredictRequest, RunContext
from meltr.data.loader import LoaderBatches
from meltr.errors import PluginError
from meltr.hookspecs import hookimpl
from meltr.parallel.gather import gather_in_turn, share_of
from meltr.texts.batches import Collate, TextEncoder
from meltr.texts.columns import Column, described
from meltr.texts.corpus import TextCorpus, TextItem
from meltr.texts.names import LABEL, WRITING
from meltr.texts.opening import cut, open_texts
from meltr.texts.options import SKIP
from meltr.texts.results import evaluation, predicted, texts_of
from meltr.texts.writing import writings, written
from meltr.weights import some

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")


class TextAdapter(ABC, Generic[M]):
    """Implements the hooks of ``text-classification`` and ``text-to-text``.

    A subclass writes `make_encoder`, `make_model`, `losses` and `outputs`, and for ``text-to-text`` `write`. It may add
    the optional hooks ``parameter_groups`` and ``model_blocks``, marked with `meltr.hookimpl`. ``context.options`` is
    an instance of a subclass of `meltr.texts.options.TextOptions`. The type parameter is the class of the model.

    Attributes:
        encoder: What `make_encoder` returned.
        corpus: The texts of the run; a trained run that predicts has none.
        columns: The further columns that are learned, in the order of ``batch["columns"]``.
    """

    encoder: TextEncoder
    corpus: TextCorpus
    columns: tuple[Column, ...] = ()

    # What a backbone writes

    @abstractmethod
    def make_encoder(self, texts: Sequence[str] | None, meta: Mapping[str, Any], context: RunContext) -> Any:
        """Return the encoder, a `TextEncoder`.

        Args:
            texts: The training texts, and their targets in the task ``text-to-text``; None in a trained run that
                predicts.
            meta: What a trained run remembers, with the `TextEncoder.facts` of its encoder; empty if `texts` are given.
            context: The run.
        """

    @abstractmethod
    def make_model(self, meta: Mapping[str, Any], context: RunContext) -> M:
        """Return the model with the heads for its losses and for `columns`.

        Args:
            meta: Has ``classes``, the names of the classes, and the `TextEncoder.facts`.
            context: The run.
        """

    @abstractmethod
    def losses(self, model: M, batch: Mapping[str, Tensor], context: RunContext) -> dict[str, Tensor]:
        """Return the losses named in ``context.losses``, 0-dim; that of a column is `meltr.texts.losses.column_loss`.

        Args:
            model: The model.
            batch: What `meltr.texts.batches.Collate` returns, on the device.
            context: The run; random numbers come from ``context.generator``.
        """

    @abstractmethod
    def outputs(self, model: M, batch: Mapping[str, Tensor], context: RunContext) -> dict[str, Tensor]:
        """Return what the model says about texts, in eval mode.

        Args:
            model: The model.
            batch: What `TextEncoder.texts` returns, on the device.
            context: The run.

        Returns:
            ``label``: the logits of the classes, (B, number of classes), in the task ``text-classification``; and for
            every column of `columns` the outputs of its head, (B, ``column.outputs``), by its name.
        """

    def write(self, model: M, texts: Sequence[str], context: RunContext, *, count: int) -> list[list[str]]:
        """Return 1 to `count` outputs for each of B texts, best first; for the task ``text-to-text``."""
        message = f"{type(self).__name__} has no method write, which the task text-to-text needs."
        raise PluginError(message, "Write it, or remove the task from BackboneInfo.tasks.")

    # The hooks of a run

    @hookimpl
    def build_data(self, context: RunContext) -> Data:
        """Read the table, cut its splits, and make the encoder; texts that are too long are noted.

        Raises:
            UserError: If the table is not valid, or what a column holds cannot be told.
        """
        spec, options = context.spec, context.options
        whole = open_texts(spec)
        self.corpus = corpus = cut(whole, spec)
        train = corpus.splits["train"]
        texts = [item.text for item in train]
        targets = [item.target for item in train if spec.task == WRITING]
        self.encoder = encoder = self.make_encoder([*texts, *targets], {}, context)
        names = [name for name in whole.columns if name in context.losses and options.columns.get(name) != SKIP]
        columns, useless = described(train, names, options)
        if long := encoder.truncated(texts):
            note = f"{long:,} of {len(train):,} training texts are longer than {encoder.text_length} tokens"
            context.notes.append(note)
        context.notes.extend(notes_on_classes(corpus))
        collate = Collate(encoder, corpus.classes, columns)

        def batches(items: Sequence[TextItem]) -> LoaderBatches:
            part = {"rank": context.rank, "world_size": context.world_size, "workers": spec.data.workers or 0}
            return LoaderBatches(items, spec.train.batch_size, seed=spec.seed, collate=collate, **part)  # type: ignore[arg-type]

        return Data(
            train=batches(train),
            validation=corpus.splits.get("validation"),
            test=corpus.splits.get("test"),
            held_out=batches(corpus.splits["held_out"]) if "held_out" in corpus.splits else None,
            meta={
                "sizes": {split: len(items) for split, items in corpus.splits.items()},
                "classes": list(corpus.classes),
                "columns": [column.as_json() for column in columns],
                **encoder.facts(),
            },
            left_out=useless,
        )

    @hookimpl
    def build_model(self, context: RunContext, data: Data) -> nn.Module:
        """Return the model; see `make_model`."""
        if not hasattr(self, "encoder"):
            self.encoder = self.make_encoder(None, data.meta, context)
        self.columns = tuple(Column.from_json(each) for each in data.meta["columns"])
        return self.make_model(data.meta, context)

    @hookimpl
    def compute_task_losses(self, model: M, batch: Mapping[str, Tensor], context: RunContext) -> dict[str, Tensor]:
        """Return the losses named in ``context.losses``; see `losses`."""
        return self.losses(model, batch, context)

    @hookimpl
    def evaluate(self, model: M, data: Sequence[TextItem], context: RunContext) -> Evaluation:
        """Return the metrics of the task, and in the details how well further columns are told."""
        texts = [item.text for item in data]
        if context.spec.task == WRITING:
            outputs = self._outputs(model, texts, context) if self.columns else {}
            result = written(self.corpus, data, [found[0] for found in self._written(model, texts, context, 1)])
        else:
            outputs = self._outputs(model, texts, context)
            result = evaluation(self.corpus, data, outputs[LABEL].argmax(1).tolist())
        found = {column.name: about_column(column, outputs[column.name].float(), data) for column in self.columns}
        known = {name: result for name, result in found.items() if result}
        return replace(result, details={"columns": known} if self.columns else {})

    @hookimpl
    def predict(self, model: M, request: PredictRequest, data: Data, context: RunContext) -> Prediction:
        """Return the most probable classes of every text, or what the model writes for it."""
        texts = texts_of(request)
        if context.spec.task == WRITING:
            return writings(texts, self._written(model, texts, context, request.top))
        logits = self._outputs(model, texts, context)[LABEL].float()
        return predicted(texts, logits.softmax(1).tolist(), data.meta["classes"], top=request.top)

    def _outputs(self, model: M, texts: Sequence[str], context: RunContext) -> dict[str, Tensor]:
        """Return the outputs for all texts, on the CPU."""

        def outputs(part: Sequence[str]) -> dict[str, Tensor]:
            batch = {name: column.to(context.device) for name, column in self.encoder.texts(part).items()}
            return {name: each.cpu() for name, each in self.outputs(model, batch, context).items()}

        found = _shared(outputs, texts, context)
        return {name: torch.cat([part[name] for part in found]) for name in found[0]}

    def _written(self, model: M, texts: Sequence[str], context: RunContext, count: int) -> list[list[str]]:
        parts = _shared(lambda part: self.write(model, part, context, count=count), texts, context)
        return [outputs for part in parts for outputs in part]


def _shared(compute: Callable[[Sequence[str]], T], texts: Sequence[str], context: RunContext) -> list[T]:
    """Return what `compute` returns for every batch of texts, in order; each process computes its share."""
    size = context.options.eval_batch_size
    parts = [texts[start : start + size] for start in range(0, len(texts), size)]
    own = share_of(parts, context.rank, context.world_size)
    return gather_in_turn([compute(part) for part in own], context.world_size)


def about_column(column: Column, outputs: Tensor, items: Sequence[TextItem]) -> dict[str, float]:
    """Return how well a further column is told: ``accuracy`` in percent, or ``mae`` in its own unit, and ``count``.

    Empty cells are skipped, and classes that training does not have; without any other the result is empty.

    Args:
        column: The column.
        outputs: Of its head, (number of texts, ``column.outputs``), on the CPU.
        items: The texts.
    """
    right = torch.tensor([column.value(item.columns.get(column.name)) for item in items])
    known = ~right.isnan()
    if not known.any():
        return {}
    if column.kind == "classes":
        hits = outputs.argmax(1)[known] == right[known].long()
        return {"accuracy": 100 * float(hits.double().mean()), "count": int(known.sum())}
    error = (outputs[known, 0] - right[known]).abs().double().mean() * column.deviation
    return {"mae": float(error), "count": int(known.sum())}


def notes_on_classes(corpus: TextCorpus) -> list[str]:
    """Return a note for every split with classes that training does not have: no answer to these texts is right."""
    notes = []
    for split, items in corpus.splits.items():
        new = [item.label for item in items if item.label and item.label not in corpus.classes]
        if new:
            names = some([repr(name) for name in sorted(set(new))])
            notes.append(
                f"{len(new):,} of {len(items):,} {split} texts have a class that no training text has: {names}"
            )
    return notes
