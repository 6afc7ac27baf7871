"""Frame samplers: pure functions from the number of frames of a video to the indices of the frames to use.

If a video has fewer frames than requested, frames repeat. So the number of indices never depends on the video.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from meltr.errors import UserError, did_you_mean

Indices = tuple[int, ...]
Sampler = Callable[[int, int], Indices]
"""``sampler(total, count)``: `count` indices below `total`, in ascending order."""


def centres(total: int, count: int) -> Indices:
    """Return floor((i + 1) total / (count + 1)) for i = 0 ... count - 1: evenly spaced, with a margin at both ends.

    The rule of the frame extraction published with Fu et al., arXiv 2111.12681.

    Raises:
        ValueError: If `total` or `count` is below 1; this holds for every sampler.
    """
    _check(total, count)
    return tuple((i + 1) * total // (count + 1) for i in range(count))


def middles(total: int, count: int) -> Indices:
    """Divide the video into `count` segments and return the middle frame of each.

    With the edges e_i = floor(i total / count) the middle is floor((e_i + e_{i+1} - 1) / 2). This is the uniform mode
    of public video-text code since Frozen in Time (Bain et al., ICCV 2021).
    """
    edges = _edges(total, count)
    return tuple(max(0, (edges[i] + edges[i + 1] - 1) // 2) for i in range(count))


def random_in_segments(
    total: int, count: int, *, rng: random.Random | None = None, spare_last: bool = False
) -> Indices:
    """Return one random frame from each segment of `middles` (temporal segment sampling, Wang et al., ECCV 2016).

    Args:
        total: Number of frames of the video.
        count: Number of frames to sample.
        rng: Source of random numbers; None: Python's global generator, which `meltr.data.loader.LoaderBatches` seeds
            for every item.
        spare_last: Never draw the last frame of a segment of two or more frames; the released training code of this
            line of work has this off-by-one error.
    """
    edges = _edges(total, count)
    draw = random.randrange if rng is None else rng.randrange
    indices = []
    for start, stop in pairwise(edges):
        if stop == start:
            indices.append(max(0, start - 1))
        else:
            last = stop - 1 if spare_last and stop - start > 1 else stop
            indices.append(draw(start, last))
    return tuple(indices)


SAMPLERS: dict[str, Sampler] = {"centres": centres, "middles": middles, "random": random_in_segments}
"""The named samplers."""


def sampler_named(name: str) -> Sampler:
    """Return a sampler by name; UserError with the valid choices if the name is unknown."""
    if name not in SAMPLERS:
        raise UserError(f"there is no frame sampler {name!r}", did_you_mean(name, SAMPLERS))
    return SAMPLERS[name]


def _edges(total: int, count: int) -> list[int]:
    """Return the `count` + 1 edges of the segments, rounded by numpy as in published code."""
    _check(total, count)
    return [int(edge) for edge in np.linspace(0, total, count + 1).astype(int)]


def _check(total: int, count: int) -> None:
    if total < 1 or count < 1:
        raise ValueError(f"{count} of {total} frames: both must be at least one")
