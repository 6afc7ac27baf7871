"""Where frames come from: anything that turns the key of a video or image into pictures. Imports no torch."""

from __future__ import annotations

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
