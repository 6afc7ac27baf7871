"""Encode pictures to files: H.264 or MPEG-4 with PyAV, GIF with Pillow. Both are imported on first use."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from meltr.data.processes import available_cores
from meltr.video.frames.media import require
from meltr.video.frames.source import Frames
from meltr.video.miniature.rendering import render
from meltr.video.miniature.scenes import Scene

RATE = 8
"""Frames per second."""

COLOURS = 96
"""Number of colours of a GIF."""

Progress = Callable[[int, int], None]
"""Called with the number of clips written so far and the number of all clips."""


def write_clips(clips: Mapping[Path, Scene], progress: Progress | None = None) -> None:
    """Draw and encode scenes, with one thread per core.

    Args:
        clips: File -> scene; the suffix chooses the format: ``.gif``, ``.avi`` (MPEG-4), anything else H.264.
        progress: Called after each clip.

    Raises:
        UserError: If PyAV or Pillow is missing.
    """
    for folder in {path.parent for path in clips}:
        folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(available_cores()) as pool:
        for done, _ in enumerate(pool.map(_write, clips, clips.values()), start=1):
            if progress is not None:
                progress(done, len(clips))


def _write(path: Path, scene: Scene) -> None:
    encode = _gif if path.suffix == ".gif" else _video
    encode(path, render(scene))


def _video(path: Path, frames: Frames) -> None:
    av: Any = require("av")
    codec, options = "mpeg4", {"qmin": "2", "qmax": "6"}
    if path.suffix != ".avi" and "libx264" in av.codecs_available:
        codec, options = "libx264", {"preset": "veryfast", "crf": "20"}
    with av.open(os.fspath(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        # One thread: clips are encoded in parallel, and the bytes then do not depend on the number of cores.
        stream.codec_context.thread_count = 1
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def _gif(path: Path, frames: Frames) -> None:
    image: Any = require("PIL.Image")
    count, height, width = frames.shape[:3]
    # One palette for the whole clip, so that static parts stay identical and are stored once.
    column = image.fromarray(frames.reshape(count * height, width, 3)).quantize(COLOURS, dither=image.Dither.NONE)
    first, *others = [column.crop((0, top, width, top + height)) for top in range(0, count * height, height)]
    first.save(path, save_all=True, append_images=others, duration=1000 // RATE, loop=0, optimize=False)
