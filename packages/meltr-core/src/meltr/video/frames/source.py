"""Sources of frames: objects that map the key of a video or image to pictures. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]
"""Pictures of one video, shape (T, H, W, 3), RGB, 0..255."""


@runtime_checkable
class FrameSource(Protocol):
    """Source of frames by key. Implementations must be picklable, so that DataLoader workers can use them."""

    def frames(self, key: str) -> Frames:
        """Return the frames of `key`, shape (T, H, W, 3); T is the same for all keys.

        Raises:
            KeyError: If `key` is unknown.
            meltr.UserError: If its file cannot be decoded.
        """
        ...


class Remembered:
    """Memory cache of the transformed frames of another source.

    Args:
        source: The source of the frames.
        change: Transform applied once per key, such as padding and resizing: (T, H, W, 3) to (T, H', W', 3).
        most_bytes: Memory limit in bytes; frames that no longer fit are read and transformed on every access.
    """

    def __init__(self, source: FrameSource, change: Callable[[Frames], Frames], *, most_bytes: int) -> None:
        self._source, self._change, self._left = source, change, most_bytes
        self._kept: dict[str, Frames] = {}

    def frames(self, key: str) -> Frames:
        """Return the transformed frames of `key`; errors are those of the source."""
        known = self._kept.get(key)
        if known is not None:
            return known
        frames = self._change(self._source.frames(key))
        if frames.nbytes <= self._left:
            self._left -= frames.nbytes
            self._kept[key] = frames
        return frames
