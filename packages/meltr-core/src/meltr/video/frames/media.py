"""Frames of a video or image file, by exact decoded frame number. Imports PyAV and Pillow on first use only."""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from meltr.errors import UserError
from meltr.video.frames.containers import damaged_at, missing_bytes
from meltr.video.frames.iso_tables import broken_table
from meltr.video.frames.libraries import require as require
from meltr.video.frames.sampling import Sampler, sampler_named
from meltr.video.frames.source import Frames
from meltr.video.frames.stills import UnsupportedPictureError, opened, rgb

if TYPE_CHECKING:
    import numpy.typing as npt

Choose = Callable[[int], Sequence[int]]
"""Maps the number of frames to the indices to return; an index may occur more than once."""

_CONTAINERS = (
    "mov,matroska,webm,avi,mpeg,mpegts,mpegvideo,m4v,h264,hevc,obu,ivf,flv,asf,ogg,gif,mxf,nut,dv,rm,wtv,mjpeg,swf,"
    "wav,mp3,flac,aac,aiff,ac3"
)
"""Formats that FFmpeg may open. Others are no single files: a list of files, a playlist, a device, a stream."""

LATEST, LONGEST = 3600, 24 * 3600
"""Most seconds between decoding and showing a frame, and between two frames; more is a damaged time stamp."""

_ATTACHED_PICTURE = 0x400
"""FFmpeg's mark of a video stream that is a picture about the film, such as its cover."""


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
    """Check that a file is readable, a regular file, as long as its headers state, and whole in its structure.

    Raises:
        MediaError: If it is not.
    """
    try:
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # reading a pipe or a device may never end
            raise MediaError(f"{path} is not a regular file.", "Give a file.")
        lacking, damage, table = missing_bytes(path), damaged_at(path), broken_table(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MediaError(f"Cannot read {path}: {reason}.", "Check the path and its permissions.")
    if lacking:
        size = path.stat().st_size
        message = f"{path} is truncated: by its own headers, at least {lacking:,} bytes are missing after {size:,}."
        raise MediaError(message, "Get the file again.")
    if table is not None:
        raise MediaError(f"{path} is damaged: its table {table} does not fit the others.", "Get the file again.")
    if damage is not None:
        raise MediaError(f"{path} is damaged at byte {damage:,}: no element of its format.", "Get the file again.")


def _stack(path: Path, chosen: dict[int, Any], indices: Sequence[int], total: int) -> Decoded:
    return Decoded(np.stack([chosen[index] for index in indices]), tuple(indices), total)


def _decode_image(path: Path, choose: Choose) -> Decoded | None:
    """Read a still image, an animated WebP or an animated PNG; None if the file is none of these."""
    unknown: Any = require("PIL.Image").UnidentifiedImageError
    try:
        with opened(path) as picture:
            total = getattr(picture, "n_frames", 1) if picture.format in ("PNG", "WEBP") else 1
            indices = choose(total)
            chosen: dict[int, npt.NDArray[np.uint8]] = {}
            for index in sorted(set(indices)):
                if total > 1:
                    picture.seek(index)
                chosen[index] = np.asarray(rgb(picture))
    except unknown:
        return None
    except UnsupportedPictureError as error:
        raise MediaError(f"{path} cannot be shown: {error.message}.", error.hint)
    except Exception as error:  # a broken picture can make the decoders raise anything
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
        container = av.open(str(path), metadata_errors="replace", options={"format_whitelist": _CONTAINERS})
    except (av.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise MediaError(
            f"{path} is neither a video nor an image that can be read: {reason} ({path.stat().st_size:,} bytes).",
            "It may be truncated, or another kind of file under this name, such as a web page. Get the file again.",
        )
    stream = film_of(container)
    if stream is None:
        container.close()
        raise MediaError(f"{path} has no frames: it holds no video stream.", "Is it an audio file?")
    if stream.codec_context is None:
        container.close()
        raise MediaError(f"{path} has a codec that PyAV cannot decode.", "Convert it, for example to H.264 in MP4.")
    return container


def film_of(container: Any) -> Any:
    """Return the first video stream that is not a cover or another attached picture; None if there is none."""
    films = (each for each in container.streams.video if not int(each.disposition) & _ATTACHED_PICTURE)
    return next(films, None)


def _announced_frames(path: Path) -> int:
    """Return the container's number of frames, or else its number of packets."""
    with open_video(path) as container:
        stream = film_of(container)
        if stream.frames > 0:
            return int(stream.frames)
        return sum(1 for packet in container.demux(stream) if packet.size)


def _decode_chosen(path: Path, wanted: frozenset[int], threads: int) -> tuple[dict[int, npt.NDArray[np.uint8]], int]:
    """Decode a whole video; return the chosen frames by index, (H, W, 3) each, and the number of frames."""
    av = require("av")
    chosen: dict[int, npt.NDArray[np.uint8]] = {}
    number, size = 0, None
    with open_video(path) as container:
        stream = film_of(container)
        stream.thread_type = "AUTO" if threads != 1 else "NONE"
        stream.codec_context.thread_count = threads
        lost = LostFrames(container.format.name, stream.codec_context.name)
        try:
            for packet in container.demux(stream):
                lost.announced(packet)
                for frame in packet.decode():
                    lost.decoded(frame)
                    if number in wanted:
                        size = size or (frame.width, frame.height)
                        pixels = frame.to_ndarray(format="rgb24", width=size[0], height=size[1])
                        chosen[number] = np.rot90(pixels, round(frame.rotation / 90))
                    number += 1
            lost.check()
        except (av.FFmpegError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise MediaError(f"{path} is damaged after frame {number}: {reason}.", "Get the file again.")
    return chosen, number


class LostFrames:
    """Finds the damage that a decoder passes over: it marks a frame, or leaves out frames that the file announces.

    A frame is missed only where every packet is one frame with its own time: H.264 and HEVC in MP4, MOV, MKV. Frames
    before the first one that can be decoded are not damage (a video that was cut between key frames), nor those that
    the file marks as not to be shown.

    Args:
        container: FFmpeg's name of the container.
        codec: FFmpeg's name of the codec.
    """

    def __init__(self, container: str, codec: str) -> None:
        self._counted = codec in ("h264", "hevc") and ("mov" in container or "matroska" in container)
        self._announced: Counter[int] = Counter()
        self._decoded: Counter[int] = Counter()
        self._first: int | None = None
        self._before: int | None = None

    def announced(self, packet: Any) -> None:
        """Take note of a packet; ValueError if it is marked as damaged, or its times cannot be true."""
        if packet.size and packet.is_corrupt:
            raise ValueError("a packet is marked as damaged")
        if packet.pts is not None and packet.dts is not None:
            shown_late = abs((packet.pts - packet.dts) * packet.time_base)
            pause = 0 if self._before is None else abs((packet.dts - self._before) * packet.time_base)
            if shown_late > LATEST or pause > LONGEST:
                raise ValueError(f"a time stamp is {float(max(shown_late, pause)):,.0f} seconds away from the others")
            self._before = packet.dts
        if self._counted and packet.size and packet.pts is not None and not packet.is_discard:
            self._announced[packet.pts] += 1

    def decoded(self, frame: Any) -> None:
        """Take note of a frame; ValueError if the decoder marks it as damaged."""
        if frame.is_corrupt:
            raise ValueError("its picture is marked as damaged")
        if self._counted and frame.pts is not None:
            self._decoded[frame.pts] += 1
            self._first = frame.pts if self._first is None else self._first

    def check(self) -> None:
        """Raise a ValueError if frames after the first one are missing."""
        first = self._first
        lost = self._announced - self._decoded
        missing = sum(count for time, count in lost.items() if first is not None and time > first)
        if missing:
            raise ValueError(f"{missing} frames that the file announces cannot be decoded")


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
