"""Read a video as a stream of short clips of equal duration. Memory does not grow with the length of the video.

This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from meltr.video.frames.media import MediaError, check_whole, decode, film_of, open_video, require
from meltr.video.frames.pictures import Picture
from meltr.video.frames.source import Frames

LONGEST = 3600.0
"""Seconds that one frame may be shown. A longer time is a damaged time stamp: it would give hours of clips."""

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
"""Endings of still images. An image is one clip that repeats the picture."""


def moments(path: Path, *, rate: float, frames: int, prepare: Callable[[Picture], Picture]) -> Iterator[Frames]:
    """Yield clip k with the frames shown at the times (k + i / frames) / rate for i = 0 ... frames - 1.

    The last clip is padded with its last frame.

    Args:
        path: A video or a still image.
        rate: Clips per second.
        frames: Frames per clip.
        prepare: Converts a decoded picture, always to the same size; called once for each frame that is used.

    Yields:
        Pictures (frames, H, W, 3).

    Raises:
        MediaError: If the file is missing, truncated, damaged, or holds no pictures. A damaged file may yield clips
            before the error.
        UserError: If PyAV or Pillow is not installed.
    """
    if path.suffix.lower() in IMAGES:
        picture = prepare(decode(path, lambda total: [0]).frames[0])
        yield np.stack([picture] * frames)
        return
    clip: list[Picture] = []
    for picture, times in _seen(path, rate * frames, prepare):
        for _ in range(times):
            clip.append(picture)
            if len(clip) == frames:
                yield np.stack(clip)
                clip = []
    if clip:
        yield np.stack(clip + clip[-1:] * (frames - len(clip)))


def _seen(path: Path, rate: float, prepare: Callable[[Picture], Picture]) -> Iterator[tuple[Picture, int]]:
    """Yield each frame that is shown at one or more of the times k / rate, and the number of these times."""
    taken = 0
    for picture, end in _timed(path):
        until = -int(-(end * rate - 1e-6) // 1)  # the first k with k / rate >= end
        if until > taken:
            yield prepare(picture()), until - taken
            taken = until
    if not taken:
        raise MediaError(f"{path} has no frame that can be decoded.", "Get the file again.")


def _timed(path: Path) -> Iterator[tuple[Callable[[], Picture], float]]:
    """Yield a function that converts each frame when it is needed, and the time in seconds until which it is shown."""
    av: Any = require("av")
    check_whole(path)
    with open_video(path) as container:
        stream = film_of(container)
        stream.thread_type = "NONE"
        step = 1 / float(stream.average_rate or 25)
        start = held = None
        number = 0
        try:
            for frame in container.decode(stream):
                number += 1
                now = frame.time
                start = now if start is None else start
                if held is not None:
                    # Frames without a time, or with a time that does not increase, last as long as the others.
                    end = held[1] + step if now is None or start is None or now - start <= held[1] else now - start
                    if end - held[1] > LONGEST:
                        raise MediaError(
                            f"{path} is damaged after frame {number}: by its time stamps, that frame lasts "
                            f"{end - held[1]:,.0f} seconds.",
                            "Get the file again, or encode it again.",
                        )
                    yield _converter(held[0]), end
                    held = (frame, end)
                else:
                    held = (frame, 0.0)
        except (av.FFmpegError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise MediaError(f"{path} is damaged after frame {number}: {reason}.", "Get the file again.") from error
        if held is not None:
            yield _converter(held[0]), held[1] + step


def _converter(frame: Any) -> Callable[[], Picture]:
    return lambda: np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
