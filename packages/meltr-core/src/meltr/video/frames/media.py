"""Frames of a video or image file, by exact decoded frame number. Imports PyAV and Pillow on first use only."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from meltr.errors import UserError
from meltr.video.frames.containers import missing_bytes
from meltr.video.frames.sampling import Sampler, sampler_named
from meltr.video.frames.source import Frames

if TYPE_CHECKING:
    import numpy.typing as npt

Choose = Callable[[int], Sequence[int]]
"""Maps the number of frames to the indices to return; an index may occur more than once."""

_LIBRARIES = {"av": "PyAV", "PIL.Image": "Pillow", "PIL.ImageOps": "Pillow", "PIL.ImageSequence": "Pillow"}


class MediaError(UserError):
    """A media file is missing, broken, or has no frames."""


class Decoded(NamedTuple):
    """Result of `decode`.

    Args:
        frames: The chosen frames, (T, H, W, 3), RGB.
        indices: Their indices, from 0.
        total: Number of frames in the file.
    """

    frames: Frames
    indices: tuple[int, ...]
    total: int


def require(module: str) -> ModuleType:
    """Import a library of the extra ``video``; if it is missing, UserError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        name = _LIBRARIES[module]
        raise UserError(
            f"Reading videos and images needs {name}, which is not installed.",
            "Install it with: pip install 'meltr-core[video]'",
        ) from None


def decode(path: Path, choose: Choose, *, threads: int = 1) -> Decoded:
    """Read frames of a video or image.

    A video is decoded from its first frame to its last. So indices count decoded frames, regardless of the container's
    metadata, and damage anywhere is detected. Only the chosen frames are converted and kept. A GIF counts as a video,
    and a still image as a video of one frame. A rotation in the metadata is applied.

    Args:
        path: The file.
        choose: Called with the number of frames; called again if the container's number was wrong.
        threads: Threads of the video decoder; 0: one per core. The frames do not depend on it.

    Raises:
        MediaError: If the file is missing, truncated, damaged, neither a video nor an image, or has no frames.
        UserError: If PyAV or Pillow is not installed.
    """
    check_whole(path)
    decoded = _decode_image(path, choose)
    return decoded if decoded is not None else _decode_video(path, choose, threads)


def check_whole(path: Path) -> None:
    """Check that a file is readable and as long as its headers state; MediaError if not."""
    try:
        lacking = missing_bytes(path)
    except OSError as error:
        raise MediaError(f"Cannot read {path}: {error.strerror or error}.", "Check the path and its permissions.")
    if lacking:
        size = path.stat().st_size
        message = f"{path} is truncated: by its own headers, at least {lacking:,} bytes are missing after {size:,}."
        raise MediaError(message, "Get the file again.")


def _stack(path: Path, chosen: dict[int, Any], indices: Sequence[int], total: int) -> Decoded:
    return Decoded(np.stack([chosen[index] for index in indices]), tuple(indices), total)


def _decode_image(path: Path, choose: Choose) -> Decoded | None:
    """Read a still image, an animated WebP or an animated PNG; None if the file is none of these."""
    image, operations = require("PIL.Image"), require("PIL.ImageOps")
    formats = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF")
    try:
        picture = image.open(path, formats=formats)
    except image.UnidentifiedImageError:
        return None
    except Exception as error:  # a broken header can make the plugins raise anything
        raise _damaged(path, error)
    try:
        with picture:
            total = getattr(picture, "n_frames", 1) if picture.format in ("PNG", "WEBP") else 1
            indices = choose(total)
            chosen: dict[int, npt.NDArray[np.uint8]] = {}
            for index in sorted(set(indices)):
                if total > 1:
                    picture.seek(index)
                chosen[index] = np.asarray(operations.exif_transpose(picture).convert("RGB"))
    except Exception as error:
        raise _damaged(path, error)
    return _stack(path, chosen, indices, total)


def _damaged(path: Path, error: Exception) -> MediaError:
    reason = getattr(error, "strerror", None) or str(error)
    return MediaError(f"{path} is damaged: {type(error).__name__}: {reason}.", "Get the file again.")


def _decode_video(path: Path, choose: Choose, threads: int) -> Decoded:
    """Decode with the container's number of frames, and again with the correct number if that was wrong."""
    expected = _announced_frames(path)
    for _ in range(2):
        indices = choose(expected) if expected else ()
        chosen, total = _decode_chosen(path, frozenset(indices), threads)
        if total == 0:
            raise MediaError(f"{path} has no frame that can be decoded.", "Get the file again.")
        if total == expected:
            return _stack(path, chosen, indices, total)
        expected = total
    raise MediaError(f"{path} decodes to a different number of frames each time.", "Get the file again.")


def open_video(path: Path) -> Any:
    """Open a video with PyAV; MediaError if it is not one."""
    av = require("av")
    try:
        container = av.open(str(path), metadata_errors="replace")
    except (av.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise MediaError(
            f"{path} is neither a video nor an image that can be read: {reason} ({path.stat().st_size:,} bytes).",
            "It may be truncated, or another kind of file under this name, such as a web page. Get the file again.",
        )
    if not container.streams.video:
        container.close()
        raise MediaError(f"{path} has no frames: it holds no video stream.", "Is it an audio file?")
    if container.streams.video[0].codec_context is None:
        container.close()
        raise MediaError(f"{path} has a codec that PyAV cannot decode.", "Convert it, for example to H.264 in MP4.")
    return container


def _announced_frames(path: Path) -> int:
    """Return the container's number of frames, or else its number of packets."""
    with open_video(path) as container:
        stream = container.streams.video[0]
        if stream.frames > 0:
            return int(stream.frames)
        return sum(1 for packet in container.demux(stream) if packet.size)


def _decode_chosen(path: Path, wanted: frozenset[int], threads: int) -> tuple[dict[int, npt.NDArray[np.uint8]], int]:
    """Decode a whole video; return the chosen frames by index, (H, W, 3) each, and the number of frames."""
    av = require("av")
    chosen: dict[int, npt.NDArray[np.uint8]] = {}
    number, size = 0, None
    with open_video(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO" if threads != 1 else "NONE"
        stream.codec_context.thread_count = threads
        try:
            for frame in container.decode(stream):
                if number in wanted:
                    size = size or (frame.width, frame.height)
                    pixels = frame.to_ndarray(format="rgb24", width=size[0], height=size[1])
                    chosen[number] = np.rot90(pixels, round(frame.rotation / 90))
                number += 1
        except (av.FFmpegError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise MediaError(f"{path} is damaged after frame {number}: {reason}.", "Get the file again.")
    return chosen, number


class DecodedMedia:
    """A `meltr.video.frames.source.FrameSource` that decodes the file on every access.

    Args:
        media: Key -> file.
        count: Number of frames per file.
        sampler: Name of a sampler (`meltr.video.frames.sampling.SAMPLERS`), or a function that can be pickled.
        threads: Threads of the decoder, see `decode`.

    Raises:
        UserError: If there is no sampler of that name.
    """

    def __init__(
        self, media: Mapping[str, Path], count: int, sampler: str | Sampler = "centres", *, threads: int = 1
    ) -> None:
        self.count = count
        self._media, self._threads = dict(media), threads
        self._sampler = sampler_named(sampler) if isinstance(sampler, str) else sampler

    def frames(self, key: str) -> Frames:
        """Return the frames of `key`, (`count`, H, W, 3), with H and W of the file.

        Raises:
            KeyError: If `key` is unknown.
            MediaError: If its file cannot be decoded.
        """
        return decode(self._media[key], lambda total: self._sampler(total, self.count), threads=self._threads).frames
