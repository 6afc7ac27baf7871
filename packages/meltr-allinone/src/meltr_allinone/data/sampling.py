"""Selection of the frames of a video: one from each of T equal segments (Wang et al., arXiv 2203.07303).

`uniform` takes the middle of a segment, `random` any of its frames. `released` is random as in the public repositories,
which never draw the last frame of a segment. Those repositories fail on a segment of one frame, and return fewer than T
frames for a video shorter than T; here frames repeat instead.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Literal

from meltr.video.frames.sampling import Sampler, middles, random_in_segments
from meltr.video.frames.source import Frames, FrameSource

Sampling = Literal["uniform", "random", "released"]

SAMPLERS: Mapping[Sampling, Sampler] = {
    "uniform": middles,
    "random": random_in_segments,
    "released": partial(random_in_segments, spare_last=True),
}
"""Name -> sampler. The random samplers draw from Python's global generator."""


class Drawn:
    """A `FrameSource` (meltr.video) that draws T frames from those of another source, anew at every call.

    Args:
        pool: Frames by key, the same at every call, in their order in the video.
        sampler: Chooses the frames.
        count: T.
    """

    def __init__(self, pool: FrameSource, sampler: Sampler, count: int) -> None:
        self._pool, self._sampler, self._count = pool, sampler, count

    def frames(self, key: str) -> Frames:
        """Return T frames of `key`, (T, H, W, 3). Errors are those of the pool."""
        stored = self._pool.frames(key)
        return stored[list(self._sampler(len(stored), self._count))]


@contextmanager
def draws(seed: int) -> Iterator[None]:
    """Seed Python's global generator within this context, and restore it: draws depend on `seed` alone."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)
