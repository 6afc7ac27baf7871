"""Evaluation of a split: answers and classes, retrieval in both directions, captions, sentiment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from meltr.context import Evaluation, RunContext
from meltr.data.items import UnreadableItemError
from meltr.data.worker_death import DeadReaderError
from meltr.errors import PluginError
from meltr.metrics.classification import IGNORED, hits, per_class_accuracy, topk_accuracy
from meltr.parallel.gather import gather_in_turn
from meltr.video.adapter.backbone import Columns, VideoBackbone
from meltr.video.adapter.splits import Split
from meltr.video.tasks.captions import corpus_scores
from meltr.video.tasks.regression import sentiment_metrics
from meltr.video.tasks.reranking import Scores
from meltr.video.tasks.retrieval import summary, text_to_video, video_to_text

T = TypeVar("T")
Rows = tuple[Mapping[str, Any], ...]
Probabilities = npt.NDArray[np.floating]


@torch.no_grad()
def evaluate(backbone: VideoBackbone[Any], model: nn.Module, split: Split, context: RunContext) -> Evaluation:
    """Evaluate a split for the run's task, together with a trivial baseline.

    Where the split skips broken files, the first item that cannot be read makes the split look for all of them; then
    the others are evaluated from the start.

    Args:
        backbone: The backbone's methods.
        model: The model, in eval mode, on ``context.device``.
        split: The split.
        context: The run.

    Raises:
        PluginError: If the task is not one of `LOOPS`, or the backbone lacks the method that it needs.
        UserError: If an item cannot be read.
    """
    loop = LOOPS.get(context.spec.task)
    if loop is None:
        raise PluginError(
            f"VideoAdapter cannot evaluate the task {context.spec.task!r}; valid choices: {', '.join(LOOPS)}.",
            "Override the hook `evaluate` in the adapter.",
        )
    while True:
        part, known = split.readable(), len(split.unreadable)
        try:
            found = loop(backbone, model, part, context)
            break
        except (UnreadableItemError, DeadReaderError):
            if len(split.unreadable) == known:
                raise
    beside = part.baseline
    details = {**found.details, **backbone.details(context)}
    kept = found.predictions if context.options.save_predictions else ()
    return replace(
        found,
        details=details,
        predictions=kept,
        baselines={beside.name: beside.metrics},
        skipped_items=dict(split.unreadable),
    )


def answers(backbone: VideoBackbone[Any], model: nn.Module, split: Split, context: RunContext) -> Evaluation:
    """Return the accuracy of answers or choices; an answer outside the vocabulary is never right."""
    probabilities, right = _probabilities(backbone, model, split, context)
    metrics = {"accuracy": 100 * float(hits(probabilities, right).mean())}
    outside = {"answers_outside_vocabulary": int((right == IGNORED).sum())} if split.corpus.answers else {}
    return Evaluation(metrics, len(right), outside, _answer_rows(split, probabilities))


def classes(backbone: VideoBackbone[Any], model: nn.Module, split: Split, context: RunContext) -> Evaluation:
    """Return top-1 and top-5 accuracy of classes, and the accuracy of each class."""
    probabilities, right = _probabilities(backbone, model, split, context)
    accuracies = zip(split.corpus.answers, per_class_accuracy(probabilities, right), strict=True)
    per_class = {name: None if np.isnan(value) else round(float(value), 2) for name, value in accuracies}
    rows = _answer_rows(split, probabilities)
    return Evaluation(topk_accuracy(probabilities, right), len(right), {"per_class": per_class}, rows)


def _probabilities(
    backbone: VideoBackbone[Any], model: nn.Module, split: Split, context: RunContext
) -> tuple[Probabilities, npt.NDArray[np.int64]]:
    """Return the probability of each answer for each example, (N, A), and the numbers of the right answers, (N,)."""

    def scored(batch: Columns) -> tuple[Tensor, Tensor]:
        return backbone.answer_logits(model, batch, context).float().softmax(1).cpu(), batch["answer"].cpu()

    scores, labels = zip(*_shared(split, context, scored), strict=True)
    return torch.cat(scores).numpy(), torch.cat(labels).numpy()


def _shared(split: Split, context: RunContext, score: Callable[[Columns], T]) -> list[T]:
    """Return what `score` returns for every batch, in order; each process computes its share.

    Where broken files are skipped, each process scores all: it must find the same ones as the others.
    """
    rank, count = (0, 1) if split.skip_broken else (context.rank, context.world_size)
    batches = split.batches(context.options.eval_batch_size, context.device, rank=rank, world_size=count)
    return gather_in_turn([score(batch) for batch in batches], count)


def _answer_rows(split: Split, probabilities: Probabilities) -> Rows:
    found = []
    for item, row in zip(split.items, probabilities, strict=True):
        best = int(row.argmax())
        names: Sequence[str] = item.choices or split.corpus.answers
        asked = {} if item.question is None else {"question": item.question}
        said = {"predicted": names[best], "right": split.encoder.labels.right(item)}
        found.append({"id": item.id, "video": item.media, **asked, **said, "probability": round(float(row[best]), 4)})
    return tuple(found)


def retrieval(backbone: VideoBackbone[Any], model: nn.Module, split: Split, context: RunContext) -> Evaluation:
    """Return the metrics of both directions; each video is encoded once per view."""
    owners, texts = split.texts()
    scores = mean_scores(backbone, model, split, texts, context)
    metrics = summary(text_to_video(scores.of_texts, owners))
    backward = summary(video_to_text(scores.of_videos, owners))
    metrics |= {f"v2t/{name}": value for name, value in backward.items()}
    captions = [(item, caption) for item in split.items for caption in item.captions]
    rows = []
    for (item, caption), row in zip(captions, scores.of_texts, strict=True):
        place = int(row.argmax())
        found = {"first": split.items[place].media, "score": round(float(row[place]), 4)}
        rows.append({"text": caption, "video": item.media, **found})
    return Evaluation(metrics, len(owners), {}, tuple(rows))


def mean_scores(
    backbone: VideoBackbone[Any], model: nn.Module, split: Split, texts: Mapping[str, Tensor], context: RunContext
) -> Scores:
    """Return the scores of texts and the videos of a split, (M, N), averaged over the views.

    Args:
        backbone: The backbone's methods.
        model: The model.
        split: Its N items are the videos.
        texts: Columns of M texts.
        context: The run.
    """
    views = []
    for view in range(backbone.views(context)):
        views.append(_scores_of_view(backbone, model, split, texts, context, view))
    return Scores(*(np.mean(parts, axis=0) for parts in zip(*views, strict=True)))


def _scores_of_view(
    backbone: VideoBackbone[Any],
    model: nn.Module,
    split: Split,
    texts: Mapping[str, Tensor],
    context: RunContext,
    view: int,
) -> Scores:
    """Return the scores of one view; processes share the videos, if the score of a pair depends on that pair alone."""
    size, count = context.options.eval_batch_size, context.world_size
    shared = count > 1 and not split.skip_broken and backbone.scores_pairs_alone(context)
    shared = shared and len(split.items) >= size * count
    how = {"rank": context.rank, "world_size": count} if shared else {}
    found = backbone.similarity(model, texts, split.batches(size, context.device, view, **how), context)
    if isinstance(found, Tensor):
        matrix = found.float().cpu().numpy()
        found = Scores(matrix, matrix)
    if not shared:
        return found
    columns = [range(start, start + size) for start in range(0, found.of_texts.shape[1], size)]
    own = [tuple(matrix[:, part.start : part.stop] for matrix in found) for part in columns]
    return Scores(*(np.concatenate(parts, axis=1) for parts in zip(*gather_in_turn(own, count), strict=True)))


def captions(backbone: VideoBackbone[Any], model: nn.Module, split: Split, context: RunContext) -> Evaluation:
    """Caption every clip, and score the captions against all references of the clip."""

    def captioned(batch: Columns) -> list[tuple[str, float]]:
        return [hypotheses[0] for hypotheses in backbone.captions(model, batch, split.encoder, context, count=1)]

    said = [each for batch in _shared(split, context, captioned) for each in batch]
    own = {item.id: caption for item, (caption, _) in zip(split.items, said, strict=True)}
    scores = corpus_scores(own, split.references, tokens=split.captions.tokens, meteor=split.captions.meteor)
    rows = tuple(
        {
            "id": item.id,
            "video": item.media,
            "caption": caption,
            "references": list(split.references[item.id]),
            "log_probability": round(log_probability, 4),
            "cider": round(scores.cider[item.id], 2),
        }
        for item, (caption, log_probability) in zip(split.items, said, strict=True)
    )
    return Evaluation(scores.metrics, scores.count, scores.details(), rows, skipped=scores.skipped)


def sentiment(backbone: VideoBackbone[Any], model: nn.Module, split: Split, context: RunContext) -> Evaluation:
    """Predict the sentiment of every clip."""
    found = _shared(split, context, lambda batch: backbone.sentiments(model, batch, context).float().cpu())
    scores = torch.cat(found).double().numpy()
    right = np.array([item.score for item in split.items], dtype=np.float64)
    rows = tuple(
        {"id": item.id, "video": item.media, "predicted": round(float(score), 4), "right": item.score}
        for item, score in zip(split.items, scores, strict=True)
    )
    return Evaluation(sentiment_metrics(scores, right), len(right), {}, rows)


LOOPS: Mapping[str, Callable[[VideoBackbone[Any], nn.Module, Split, RunContext], Evaluation]] = {
    "qa": answers,
    "action": classes,
    "retrieval": retrieval,
    "captioning": captions,
    "sentiment": sentiment,
}
"""Evaluation function of each task."""
