"""What a trained run says about videos that a user names: answers, classes, or which video a text is about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from meltr.context import Prediction, PredictRequest, RunContext
from meltr.video.corpus import Item
from meltr.video.frames.media import DecodedMedia
from meltr.video.frames.pictures import padded_squares
from meltr.video.prediction import answer_rows, check_request, chosen_answers, ranked_files
from meltr.video.text.vocabulary import VOCABULARY
from meltr.video.text.wordpiece import Tokenizer
from meltr_violet.data.examples import Texts
from meltr_violet.data.splits import SAMPLER
from meltr_violet.evaluation import PAIRS_PER_PASS
from meltr_violet.model.scoring import answer_logits, choice_logits, score_pairs
from meltr_violet.model.violet import Violet
from meltr_violet.options import VioletOptions


def predict(model: Violet, request: PredictRequest, meta: Mapping[str, Any], context: RunContext) -> Prediction:
    """Answer a question about videos, name their actions, or rank them by a text; each is encoded once.

    Open-ended questions with choices: probabilities are among the choices, which must be answers that the run knows.

    Args:
        model: The model, in eval mode, on ``context.device``.
        request: What is asked.
        meta: The facts of the data that it was trained on.
        context: The run; its folder holds the vocabulary.

    Raises:
        UserError: If the task has no use for what was given, lacks something, or a file cannot be read.
    """
    options, task = cast(VioletOptions, context.options), context.spec.task
    check_request(request, context, must_choose="choices" in meta)
    assert context.run_dir is not None
    texts = Texts(Tokenizer(context.run_dir / VOCABULARY, length=options.text_length), task, {}, options.choice_text)
    if request.search is not None:
        return _search(model, request, texts, meta, context)
    item = Item(media="", id="", question=request.question, choices=request.choices if "choices" in meta else ())
    ids = texts.ids(item).to(context.device)
    names: tuple[str, ...] = item.choices or tuple(meta["answers"])
    kept = chosen_answers(request, names)
    rows: list[dict[str, Any]] = []
    column = "answer" if task == "qa" else "label"
    for files, frames in _clips(request.media, meta, context):
        own = ids.expand(len(files), *ids.shape)
        if item.choices:
            logits = choice_logits(model, frames, own, pairs_per_pass=options.pairs_per_pass or PAIRS_PER_PASS)
        else:
            logits = answer_logits(model, frames, own)
        likely = logits.float()[:, kept].softmax(1).tolist()
        rows += answer_rows(files, likely, [names[place] for place in kept], column=column, top=request.top)
    what = "most probable answers" if task == "qa" else "most probable actions"
    return Prediction(tuple(rows), what + _cut(texts, item))


def _search(
    model: Violet, request: PredictRequest, texts: Texts, meta: Mapping[str, Any], context: RunContext
) -> Prediction:
    """Rank all videos by how well the text fits, in [0, 1]."""
    item = Item(media="", id="", captions=(request.search or "",))
    ids = texts.ids(item, *item.captions)[None].to(context.device)
    found: list[tuple[float, Path]] = []
    for files, frames in _clips(request.media, meta, context):
        scores = score_pairs(model, model.encode_video(frames), ids)[0].float()
        found += zip(scores.tolist(), files, strict=True)
    return ranked_files(found, request.top, remark=_cut(texts, item))


def _clips(
    media: tuple[Path, ...], meta: Mapping[str, Any], context: RunContext
) -> Iterator[tuple[tuple[Path, ...], Tensor]]:
    """Yield files and their frames (B, T, 3, S, S), bytes, sampled as in training."""
    options = cast(VioletOptions, context.options)
    source = DecodedMedia({str(file): file for file in media}, options.frames, meta.get("sampler", SAMPLER), threads=0)
    for start in range(0, len(media), options.eval_batch_size):
        files = media[start : start + options.eval_batch_size]
        squares = [torch.from_numpy(padded_squares(source.frames(str(file)), options.image_size)) for file in files]
        yield files, torch.stack(squares).permute(0, 1, 4, 2, 3).to(context.device)


def _cut(texts: Texts, item: Item) -> str:
    """Return a remark if the text of `item` is longer than the run's texts."""
    text = " ".join([*item.captions, item.question or "", *item.choices])
    length = texts.tokenizer.length
    return "" if texts.tokenizer.count(text) <= length else f" (the text is cut to {length} tokens)"
