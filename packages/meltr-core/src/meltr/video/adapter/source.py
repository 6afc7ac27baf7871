"""A data set that was found: its examples, and the source of its videos."""

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
    """A data set that was found. A backbone with its own data (prepared files, features) may subclass it.

    Args:
        corpus: Its examples, before limits and before the validation split is cut off.
        media: Source of videos for `VideoAdapter.encoder`: a `meltr.video.frames.source.FrameSource`, or another object
            that the backbone supports.
        ready: Whether videos need no decoding (they come from a cache or from features): the main process reads them.
        meta: JSON-able facts that the model or prediction needs, besides those that `VideoAdapter` collects.
        left_out: Dropped losses, which these data do not support -> why.
    """

    corpus: Corpus
    media: Any
    ready: bool = False
    meta: Mapping[str, Any] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)


def reading_processes(context: RunContext, *, ready: bool) -> int:
    """Return the number of processes that read the data of a run.

    ``data.workers`` if it is set; otherwise none if videos need no decoding or are a synthetic sample, else one per
    core, up to 8.

    Args:
        context: The run.
        ready: Whether videos need no decoding.
    """
    asked = context.spec.data.workers
    if asked is None and (ready or context.spec.sample):
        return 0
    return worker_count(asked)


def memory_bytes(context: RunContext, *, ready: bool) -> int:
    """Return the memory for frames in bytes; 0 if other processes read them: each would keep its own.

    Args:
        context: The run; ``options.memory_mb`` is the limit in MiB.
        ready: Whether videos need no decoding.
    """
    return 0 if reading_processes(context, ready=ready) else int(context.options.memory_mb) * 2**20


def open_frames(
    context: RunContext, corpus: Corpus, *, sampler: str | Sampler, change: Callable[[Frames], Frames]
) -> Source:
    """Return a corpus with its frames, from the frame cache ``options.frame_cache`` or decoded when needed.

    ``meta["sampler"]`` is the name of the sampler, if it has one.

    Args:
        context: The run; ``options.frames`` is T, ``options.image_size`` the side of a frame in pixels.
        corpus: The examples.
        sampler: Selects the T frames to decode: a name in `meltr.video.frames.sampling.SAMPLERS`, or a function.
        change: Applied to frames once, (T, H, W, 3) to (T, S, S, 3).

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
