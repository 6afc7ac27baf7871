"""Open the frames of a run: decoded at every visit, kept in memory, or read from a frame cache."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from meltr.context import RunContext
from meltr.errors import UserError
from meltr.video import Corpus, Source
from meltr.video.adapter.source import memory_bytes
from meltr.video.corpora import open_corpus
from meltr.video.frame_cache import CachedFrames, without_failed
from meltr.video.frames.media import DecodedMedia
from meltr.video.frames.source import FrameSource, Remembered
from meltr_allinone.data.sampling import SAMPLERS, Drawn, Sampling
from meltr_allinone.data.transforms import resized_squares
from meltr_allinone.options import AllInOneOptions


@dataclass(frozen=True)
class Clips:
    """The clips of a data set, as squares (T, R, R, 3) for cropping.

    Args:
        train: Clips for training, drawn anew at every visit unless sampling is uniform.
        evaluation: Clips for evaluation.
    """

    train: FrameSource
    evaluation: FrameSource


def open_source(context: RunContext) -> Source:
    """Return the data set of a run, without videos that a frame cache could not decode.

    Raises:
        UserError: If files are missing or broken, questions come with choices, or the frame cache does not fit.
    """
    options = cast(AllInOneOptions, context.options)
    corpus = open_corpus(context.spec, quiet=context.rank > 0)
    _check_open_ended(corpus)
    if options.frame_cache is not None:
        cache = CachedFrames(options.frame_cache, size=options.image_size, media=corpus.media)
        corpus = without_failed(corpus, cache)
        if cache.settings.frames == options.frames and options.sampling != "uniform":
            context.notes.append(
                f"the frame cache holds {options.frames} frames per video, so every visit sees the same ones "
                "(for more, use `meltr data cache --frames`)"
            )
    ready = options.stored_frames is not None or options.sampling == "uniform"
    make = functools.partial(_frames, corpus, options, most_bytes=memory_bytes(context, ready=ready) // 2)
    return Source(corpus, Clips(make(options.sampling), make(options.eval_sampling)), ready=ready)


def clips_of_files(media: Mapping[str, Path], options: AllInOneOptions) -> Clips:
    """Return the clips of files of the user, sampled as in evaluation.

    Args:
        media: Key -> file.
        options: The backbone's settings.
    """
    decoded = DecodedMedia(media, options.frames, SAMPLERS[options.eval_sampling], threads=0)
    frames = Remembered(decoded, functools.partial(resized_squares, size=options.image_size), most_bytes=0)
    return Clips(frames, frames)


def _check_open_ended(corpus: Corpus) -> None:
    if any(item.choices for item in corpus.splits["train"]):
        raise UserError(
            f"The questions of {corpus.dataset} have choices, but All-in-one answers from a vocabulary of answers.",
            "Remove `choices` from the manifest: the training answers then form the vocabulary.",
        )


def _frames(corpus: Corpus, options: AllInOneOptions, sampling: Sampling, *, most_bytes: int) -> FrameSource:
    """Return the clips of one way of sampling; what is the same at every visit is kept in memory."""
    change = functools.partial(resized_squares, size=options.image_size)
    if sampling == "uniform":
        return Remembered(_read(corpus, options, options.frames, sampling), change, most_bytes=most_bytes)
    if options.stored_frames is not None:
        pool = Remembered(_read(corpus, options, options.stored_frames, "uniform"), change, most_bytes=most_bytes)
        return Drawn(pool, SAMPLERS[sampling], options.frames)
    return Remembered(_read(corpus, options, options.frames, sampling), change, most_bytes=0)


def _read(corpus: Corpus, options: AllInOneOptions, count: int, sampling: Sampling) -> FrameSource:
    if options.frame_cache is None:
        return DecodedMedia(corpus.media, count, SAMPLERS[sampling])
    return CachedFrames(options.frame_cache, count, SAMPLERS[sampling], size=options.image_size)
