"""What a trained run says about videos that a user names: answers, or which video a text is about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from meltr.context import Prediction, PredictRequest, RunContext
from meltr.seeding import derive
from meltr.video.frames.media import DecodedMedia
from meltr.video.prediction import answer_rows, check_request, chosen_answers, ranked_files
from meltr.video.text.vocabulary import VOCABULARY
from meltr.video.text.wordpiece import Tokenizer
from meltr_allinone.data.sampling import SAMPLERS, draws
from meltr_allinone.data.transforms import centre_crop, channels_first, normalised, resized_squares
from meltr_allinone.evaluation import Evaluator
from meltr_allinone.model.all_in_one import AllInOne
from meltr_allinone.model.scoring import answer_logits, seeded_orders
from meltr_allinone.options import AllInOneOptions


def predict(
    model: AllInOne, request: PredictRequest, meta: Mapping[str, Any], context: RunContext, evaluator: Evaluator
) -> Prediction:
    """Answer a question about videos, or rank them by a text, as in evaluation; each video is embedded once a view.

    Args:
        model: The model, in eval mode, on ``context.device``.
        request: What is asked.
        meta: The facts of the data that it was trained on.
        context: The run; its folder holds the vocabulary.
        evaluator: How the run evaluates.

    Raises:
        UserError: If the task has no use for what was given, lacks something, or a file cannot be read.
    """
    check_request(request, context)
    assert context.run_dir is not None
    tokenizer = Tokenizer(context.run_dir / VOCABULARY, length=cast(AllInOneOptions, context.options).text_length)
    text = request.search or request.question or ""
    remark = "" if tokenizer.count(text) <= tokenizer.length else f" (the text is cut to {tokenizer.length} tokens)"
    ids = tokenizer.encode([text])
    if request.search is not None:
        views = [
            evaluator.retrieval.scores(model, ids, (video for _, video in _clips(request.media, context, view)))
            for view in range(evaluator.views)
        ]
        scores = np.mean([view.of_texts[0] for view in views], axis=0)
        return ranked_files(zip(scores.tolist(), request.media, strict=True), request.top, remark=remark)
    names: tuple[str, ...] = tuple(meta["answers"])
    kept, rows, start = chosen_answers(request, names), [], 0
    for files, video in _clips(request.media, context):
        size, frames = video.shape[:2]
        orders = seeded_orders(model, size, frames, seed=evaluator.retrieval.order_seed, start=start)
        logits = answer_logits(model, video, ids.to(context.device).expand(size, -1), orders=orders)
        likely = logits.float()[:, kept].softmax(1).tolist()
        rows += answer_rows(files, likely, [names[place] for place in kept], column="answer", top=request.top)
        start += size
    return Prediction(tuple(rows), "most probable answers" + remark)


def _clips(media: tuple[Path, ...], context: RunContext, view: int = 0) -> Iterator[tuple[tuple[Path, ...], Tensor]]:
    """Yield files and their frames, normalised, (B, T, 3, S, S), sampled as in evaluation."""
    options = cast(AllInOneOptions, context.options)
    sampler = SAMPLERS[options.eval_sampling]
    source = DecodedMedia({str(file): file for file in media}, options.frames, sampler, threads=0)
    for start in range(0, len(media), options.eval_batch_size):
        files = media[start : start + options.eval_batch_size]
        clips = []
        for number, file in enumerate(files, start):
            with draws(derive(context.spec.seed, "predict", view, number)):
                squares = resized_squares(source.frames(str(file)), options.image_size)
            clips.append(centre_crop(channels_first(squares), options.image_size))
        yield files, normalised(torch.stack(clips).to(context.device), options.normalisation)
