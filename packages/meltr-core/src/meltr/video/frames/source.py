"""Where frames come from: anything that turns the key of a video or image into pictures. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]
"""Pictures of one video, shape (T, H, W, 3), RGB, 0..255."""


@runtime_checkable
class FrameSource(Protocol):
    """Frames by key. Implementations can be pickled, so that DataLoader workers may hold one."""

    def frames(self, key: str) -> Frames:
        """Return the frames of `key`, shape (T, H, W, 3); T is the same for all keys.

        Raises:
            KeyError: If `key` is unknown.
            meltr.UserError: If its file cannot be decoded.
        """
        ...


class Remembered:
    """Frames of another source, changed by a function, and kept in memory as long as they fit.

    Args:
        source: Where frames come from.
        change: What is done to them once, such as padding and resizing: (T, H, W, 3) to (T, H', W', 3).
        most_bytes: Memory for what is kept; later keys are asked for anew each time.
    """

    def __init__(self, source: FrameSource, change: Callable[[Frames], Frames], *, most_bytes: int) -> None:
        self._source, self._change, self._left = source, change, most_bytes
        self._kept: dict[str, Frames] = {}

    def frames(self, key: str) -> Frames:
        """Return the changed frames of `key`; errors as of the source."""
        known = self._kept.get(key)
        if known is not None:
            return known
        frames = self._change(self._source.frames(key))
        if frames.nbytes <= self._left:
            self._left -= frames.nbytes
            self._kept[key] = frames
        return frames
