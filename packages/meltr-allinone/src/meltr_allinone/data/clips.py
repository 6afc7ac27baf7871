"""Open the frames of a run: decoded at every visit, kept in memory, or read from a frame cache."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import cast

from meltr.context import RunContext
from meltr.data.processes import available_cores
from meltr.video.corpus import Corpus
from meltr.video.frame_cache import CachedFrames, without_failed
from meltr.video.frames.media import DecodedMedia
from meltr.video.frames.source import FrameSource, Remembered
from meltr_allinone.data.sampling import SAMPLERS, Drawn, Sampling
from meltr_allinone.data.transforms import resized_squares
from meltr_allinone.options import AllInOneOptions

MOST_WORKERS = 8


@dataclass(frozen=True)
class Clips:
    """The clips of a data set, as squares (T, R, R, 3) for cropping.

    Args:
        train: Clips for training, drawn anew at every visit unless sampling is uniform.
        evaluation: Clips for evaluation.
        workers: Number of processes that read them.
    """

    train: FrameSource
    evaluation: FrameSource
    workers: int


def open_clips(corpus: Corpus, context: RunContext) -> tuple[Corpus, Clips]:
    """Open the clips of a corpus. Return them with the corpus, without videos that the frame cache could not decode.

    Raises:
        UserError: If the frame cache is broken, incomplete, or does not fit the settings.
    """
    options = cast(AllInOneOptions, context.options)
    if options.frame_cache is not None:
        cache = CachedFrames(options.frame_cache, size=options.image_size, media=corpus.media)
        corpus = without_failed(corpus, cache)
        if cache.settings.frames == options.frames and options.sampling != "uniform":
            context.notes.append(
                f"the frame cache holds {options.frames} frames per video, so every visit sees the same ones "
                "(for more, use `meltr data cache --frames`)"
            )
    workers = options.workers
    if workers is None:
        ready = context.spec.sample or options.stored_frames is not None or options.sampling == "uniform"
        workers = 0 if ready else min(MOST_WORKERS, available_cores())
    most_bytes = 0 if workers else options.memory_mb * 2**20 // 2  # each worker would keep its own copy for an epoch
    make = functools.partial(_source, corpus, options, most_bytes=most_bytes)
    return corpus, Clips(make(options.sampling), make(options.eval_sampling), workers)


def _source(corpus: Corpus, options: AllInOneOptions, sampling: Sampling, *, most_bytes: int) -> FrameSource:
    """Return the clips of one way of sampling. Frames that do not change between visits are kept in memory."""
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
