"""A data set as found: its examples, and where its videos are read from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from meltr.context import RunContext
from meltr.data.processes import worker_count
from meltr.video.corpus import Corpus
from meltr.video.frame_cache import CachedFrames, without_failed
from meltr.video.frames.media import DecodedMedia
from meltr.video.frames.sampling import Sampler
from meltr.video.frames.source import Frames, FrameSource, Remembered


@dataclass(frozen=True)
class Source:
    """A data set as found. A backbone with data of its own (prepared files, features) may subclass it.

    Args:
        corpus: Its examples, before limits and before the validation split is cut off.
        media: What `VideoAdapter.encoder` reads videos from: a `meltr.video.frames.source.FrameSource`, or whatever
            that backbone understands.
        ready: Whether videos come without decoding (from a cache, from features): then the main process reads them.
        meta: JSON-able facts that the model, or a prediction, needs besides those that `VideoAdapter` collects.
        left_out: Losses that these data cannot serve -> why.
    """

    corpus: Corpus
    media: Any
    ready: bool = False
    meta: Mapping[str, Any] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)


def reading_processes(context: RunContext, *, ready: bool) -> int:
    """Return how many processes read the data of a run.

    ``options.workers`` if it is set; else none where videos need no decoding or are a synthetic sample, and otherwise
    one a core, up to 8.

    Args:
        context: The run.
        ready: Whether videos need no decoding.
    """
    asked: int | None = context.options.workers
    if asked is None and (ready or context.spec.sample):
        return 0
    return worker_count(asked)


def memory_bytes(context: RunContext, *, ready: bool) -> int:
    """Return the bytes in which frames are kept: 0 if other processes read them, whose memory ends with the epoch.

    Args:
        context: The run; ``options.memory_mb`` is the limit in MiB.
        ready: As for `reading_processes`.
    """
    return 0 if reading_processes(context, ready=ready) else int(context.options.memory_mb) * 2**20


def open_frames(
    context: RunContext, corpus: Corpus, *, sampler: str | Sampler, change: Callable[[Frames], Frames]
) -> Source:
    """Return a corpus with its frames: from the frame cache of ``options.frame_cache``, or decoded when needed.

    ``meta["sampler"]`` is the name of the sampler, where it has one.

    Args:
        context: The run; ``options.frames`` is T, ``options.image_size`` the side of a frame in pixels.
        corpus: The examples.
        sampler: Which T frames of a video are decoded, a name of `meltr.video.frames.sampling.SAMPLERS` or a function.
        change: What is done to frames once, (T, H, W, 3) to (T, S, S, 3).

    Raises:
        UserError: If the frame cache is damaged, incomplete, or does not fit the settings.
    """
    options, ready = context.options, context.options.frame_cache is not None
    frames: FrameSource
    if ready:
        cache = CachedFrames(options.frame_cache, options.frames, size=options.image_size, media=corpus.media)
        frames, corpus, sampler = cache, without_failed(corpus, cache), cache.settings.sampler
    else:
        frames = DecodedMedia(corpus.media, options.frames, sampler)
    kept = Remembered(frames, change, most_bytes=memory_bytes(context, ready=ready))
    return Source(corpus, kept, ready=ready, meta={"sampler": sampler} if isinstance(sampler, str) else {})
