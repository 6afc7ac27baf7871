"""Predictions of a trained run for files of the user: answers, classes, captions, sentiments, or a ranking."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from meltr.context import Prediction, PredictRequest, RunContext
from meltr.video.adapter.backbone import VideoBackbone
from meltr.video.adapter.encoder import Labels, stacked
from meltr.video.adapter.evaluation import mean_scores
from meltr.video.adapter.splits import Split
from meltr.video.corpus import Corpus, Item
from meltr.video.frames.media_files import kind
from meltr.video.prediction import answer_rows, check_request, chosen_answers, ranked_files

SPLIT = "predict"
"""Name of the split that contains the files."""


@torch.no_grad()
def predict(
    backbone: VideoBackbone[Any],
    model: nn.Module,
    request: PredictRequest,
    meta: Mapping[str, Any],
    context: RunContext,
) -> Prediction:
    """Answer, classify, caption or rate videos, or rank them by a text; each video is encoded once.

    Args:
        backbone: The backbone's methods.
        model: The model, in eval mode, on ``context.device``.
        request: The request.
        meta: The facts about the data that it was trained on.
        context: The run; its folder holds the vocabulary.

    Raises:
        UserError: If the task cannot use an argument, an argument is missing, or a file cannot be read.
    """
    check_request(request, context, must_choose="choices" in meta)
    split = _split(backbone, request, meta, context)
    if request.search is not None:
        return _search(backbone, model, request, split, context)
    loops = {"captioning": _captions, "sentiment": _sentiments}
    return loops.get(context.spec.task, _answers)(backbone, model, request, split, context)


def _split(
    backbone: VideoBackbone[Any], request: PredictRequest, meta: Mapping[str, Any], context: RunContext
) -> Split:
    """Return the files as a split, with the question or text for each."""
    spec, answers = context.spec, tuple(meta.get("answers", ()))
    choices = request.choices if "choices" in meta else ()
    captions = () if request.search is None else (request.search,)
    items = tuple(
        Item(str(file), str(file), captions=captions, question=request.question, choices=choices)
        for file in request.media
    )
    media = {str(file): file for file in request.media}
    corpus = Corpus(spec.dataset, spec.task, {SPLIT: items}, media, answers)
    source = backbone.open_files(corpus, meta, context)
    encoder = backbone.encoder(source, backbone.tokenizer(None, context), Labels(spec.task, {}), context)
    return Split(SPLIT, source.corpus, encoder, spec.seed)


def _search(
    backbone: VideoBackbone[Any], model: nn.Module, request: PredictRequest, split: Split, context: RunContext
) -> Prediction:
    """Rank all videos by how well the text fits."""
    text = stacked([split.encoder.text(split.items[0], request.search or "")])
    scores = mean_scores(backbone, model, split, text, context).of_texts[0]
    scored = zip(scores.tolist(), request.media, strict=True)
    return ranked_files(scored, request.top, remark=_cut(split, request))


def _answers(
    backbone: VideoBackbone[Any], model: nn.Module, request: PredictRequest, split: Split, context: RunContext
) -> Prediction:
    """Return the most probable answers, choices or classes.

    For open-ended questions with choices, probabilities are relative to the choices, which must be known answers.
    """
    names = split.items[0].choices or split.corpus.answers
    kept = chosen_answers(request, names)
    column, what = ("label", "actions") if context.spec.task == "action" else ("answer", "answers")
    rows: list[dict[str, Any]] = []
    for files, batch in _files(split, request, context):
        logits = backbone.answer_logits(model, batch, context)
        likely = logits.float()[:, kept].softmax(1).tolist()
        rows += answer_rows(files, likely, [names[place] for place in kept], column=column, top=request.top)
    return Prediction(tuple(rows), f"most probable {what}{_cut(split, request)}")


def _captions(
    backbone: VideoBackbone[Any], model: nn.Module, request: PredictRequest, split: Split, context: RunContext
) -> Prediction:
    """Return the best captions of each file; identical hypotheses are listed once."""
    rows: list[dict[str, Any]] = []
    for files, batch in _files(split, request, context):
        found = backbone.captions(model, batch, split.encoder, context, count=request.top)
        for file, hypotheses in zip(files, found, strict=True):
            best = sorted(dict(reversed(hypotheses)).items(), key=lambda pair: -pair[1])[: request.top]
            rows += [{kind(file): file, "caption": text, "log_probability": score} for text, score in best]
    return Prediction(tuple(rows), "captions, best first")


def _sentiments(
    backbone: VideoBackbone[Any], model: nn.Module, request: PredictRequest, split: Split, context: RunContext
) -> Prediction:
    """Return the sentiment of each file."""
    rows: list[dict[str, Any]] = []
    for files, batch in _files(split, request, context):
        values = backbone.sentiments(model, batch, context).float().tolist()
        rows += [{kind(file): file, "score": value} for file, value in zip(files, values, strict=True)]
    return Prediction(tuple(rows), "sentiment from -3 to 3")


def _files(split: Split, request: PredictRequest, context: RunContext) -> Any:
    """Yield files with their columns, a batch at a time."""
    size = context.options.eval_batch_size
    starts = range(0, len(request.media), size)
    parts: list[tuple[Path, ...]] = [request.media[start : start + size] for start in starts]
    return zip(parts, split.batches(size, context.device), strict=True)


def _cut(split: Split, request: PredictRequest) -> str:
    """Return a remark if the given text is longer than the run's texts."""
    words = [request.search or "", request.question or "", *split.items[0].choices]
    tokenizer = split.encoder.tokenizer
    length = tokenizer.length
    return "" if tokenizer.count(" ".join(words)) <= length else f" (the text is truncated to {length} tokens)"
