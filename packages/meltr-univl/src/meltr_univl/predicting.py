"""What a trained run says about videos that a user names: captions, sentiments, or which video a text is about.

Features are made on the spot by the extractor of the run; a ``.npy`` of features may stand for its video.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from meltr.context import Prediction, PredictRequest, RunContext
from meltr.errors import UserError
from meltr.video.frames.media_files import kind
from meltr.video.prediction import check_request, ranked_files
from meltr.video.text.vocabulary import VOCABULARY
from meltr.video.text.wordpiece import Tokenizer
from meltr_univl.data.texts import Wording
from meltr_univl.evaluation import Encoded, Evaluator, describe, encode, sentiments, similarity
from meltr_univl.features.extraction import extract
from meltr_univl.features.extractors import Extractor, open_extractor
from meltr_univl.features.reading import Features, checked, window
from meltr_univl.model.univl import Univl
from meltr_univl.options import UnivlOptions


def predict(
    model: Univl, request: PredictRequest, meta: Mapping[str, Any], context: RunContext, evaluator: Evaluator
) -> Prediction:
    """Caption videos, say their sentiment, or rank them by a text; each is encoded once.

    What is said in a video (its transcript) is not known here: sentiment and captions are from the video alone.

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
    options = cast(UnivlOptions, context.options)
    assert context.run_dir is not None
    tokenizer = Tokenizer(context.run_dir / VOCABULARY, length=options.text_length)
    wording = Wording(tokenizer, caption_length=options.caption_length)
    text = request.search if request.search is not None else options.no_text
    clips = _clips(model, request.media, wording, text, meta, context)
    if request.search is not None:
        scored: list[tuple[float, Path]] = []
        for files, encoded in clips:
            first = replace(encoded, text=encoded.text[:1], text_mask=encoded.text_mask[:1])
            scores = similarity(model, first, encoded, scoring=evaluator.scoring, pairs=evaluator.pairs_per_pass)
            scored += zip(scores[0].float().tolist(), files, strict=True)
        cut = len(wording.pieces(text)) > options.text_length - 2
        remark = f" (the text is cut to {options.text_length} tokens)" if cut else ""
        return ranked_files(scored, request.top, remark=remark)
    rows: list[dict[str, Any]] = []
    for files, encoded in clips:
        if context.spec.task == "sentiment":
            values = sentiments(model, encoded).float().tolist()
            rows += [{kind(file): file, "score": value} for file, value in zip(files, values, strict=True)]
            continue
        beams = max(evaluator.beams, request.top)
        ids, sums = describe(model, encoded, beams=beams, length=wording.caption_length)
        for file, hypotheses, values in zip(files, ids, sums.float().tolist(), strict=True):
            rows += _captions(file, [wording.words(row) for row in hypotheses], values, request.top)
    what = "sentiment from -3 to 3" if context.spec.task == "sentiment" else "captions, best first"
    return Prediction(tuple(rows), what)


def _captions(file: Path, captions: list[str], scores: list[float], top: int) -> list[dict[str, Any]]:
    """Return the best captions of a file; hypotheses that read the same count once."""
    best = dict(reversed(list(zip(captions, scores, strict=True))))
    ordered = sorted(best.items(), key=lambda pair: -pair[1])[:top]
    return [{kind(file): file, "caption": caption, "log_probability": score} for caption, score in ordered]


def _clips(
    model: Univl,
    media: tuple[Path, ...],
    wording: Wording,
    text: str,
    meta: Mapping[str, Any],
    context: RunContext,
) -> Iterator[tuple[tuple[Path, ...], Encoded]]:
    """Yield files with their encoded features, beside the same text for all."""
    options = cast(UnivlOptions, context.options)
    ids, mask = wording.text(text)
    extractor: Extractor | None = None
    for start in range(0, len(media), options.eval_batch_size):
        files = media[start : start + options.eval_batch_size]
        video = torch.zeros(len(files), options.video_length, meta["video_dim"])
        lengths = torch.zeros(len(files), 1, dtype=torch.long)
        for row, file in enumerate(files):
            if file.suffix != ".npy" and extractor is None:
                extractor = _extractor(meta, context)
            features = _features(file, extractor, meta["video_dim"])
            shown = window(
                features, span=None, rate=meta["features"]["rate"], length=options.video_length, pick=options.pick
            )
            video[row, : len(shown)] = torch.from_numpy(shown.copy())
            lengths[row] = len(shown)
        columns = {
            "text": ids.expand(len(files), -1),
            "text_mask": mask.expand(len(files), -1),
            "video": video,
            "video_mask": (torch.arange(options.video_length) < lengths).long(),
        }
        yield files, encode(model, {name: column.to(context.device) for name, column in columns.items()})


def _features(file: Path, extractor: Extractor | None, width: int) -> Features:
    if file.suffix == ".npy":
        try:
            array = np.load(file, allow_pickle=False)
        except (OSError, ValueError) as error:
            hint = "It is an array of (frames, width), saved with numpy.save."
            raise UserError(f"{file} cannot be read: {error}.", hint) from error
        return checked(array, str(file), width)
    assert extractor is not None
    return extract(file, extractor)


def _extractor(meta: Mapping[str, Any], context: RunContext) -> Extractor:
    """Return what made the features of the run, with the same weights.

    Raises:
        UserError: If it is unknown, its weights are not there, or they are others.
    """
    trained = meta["features"]
    name, weights = trained["extractor"], cast(UnivlOptions, context.options).extractor_weights
    if name is None:
        raise UserError(
            "This run was trained on features that do not say how they were made: it cannot make those of a video.",
            "Make them as those were made, and give the .npy: meltr predict RUN --video FILE.npy",
        )
    extractor = open_extractor(name, weights, device=context.device)
    if extractor.weights != trained["weights"] and trained["weights"] is not None:
        raise UserError(
            f"This run was trained on features of {name} with weights {trained['weights'][:12]}; those found here are "
            f"{(extractor.weights or 'none')[:12]}.",
            "Train with --set extractor_weights=FILE to have them found again.",
        )
    return extractor
