"""Listing of video and image files, and a check that they decode. Imports PyAV and Pillow on first use only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from meltr.data.processes import map_in_order
from meltr.errors import UserError
from meltr.video.annotations.finding import SUFFIXES as VIDEO_SUFFIXES
from meltr.video.frames.media import MediaError, decode
from meltr.video.frames.source import Frames

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff")
"""File extensions of still images."""


def kind(path: Path) -> Literal["video", "image"]:
    """Return whether `path` is a video or an image, by its extension; an unknown extension means video."""
    return "image" if path.suffix.lower() in IMAGE_SUFFIXES else "video"


def list_media(folder: Path) -> tuple[Path, ...]:
    """Return the videos and images of `folder`, sorted by name; hidden files and subfolders are skipped.

    Raises:
        UserError: If the folder cannot be read, or holds no videos or images.
    """
    endings = (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES)
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"Cannot read the folder {folder}: {error.strerror or error}.", "Give a folder of videos.")
    found = [each for each in entries if each.suffix.lower() in endings and each.name[0] != "." and each.is_file()]
    if not found:
        raise UserError(
            f"{folder} holds no videos or images.",
            f"Known extensions: {' '.join(endings)}. Subfolders are not searched.",
        )
    return tuple(found)


def middle_frame(path: Path) -> Frames:
    """Return the middle frame of a video, or the image, (H, W, 3).

    Raises:
        MediaError: If it cannot be decoded.
    """
    frame: Frames = decode(path, lambda total: (total // 2,)).frames[0]
    return frame


def decodable(
    paths: Sequence[Path], *, workers: int, progress: Callable[[int, int, int], None]
) -> tuple[tuple[Path, ...], dict[Path, str]]:
    """Decode all files once; return those that decode, and path -> error message for the others.

    Args:
        paths: The files.
        workers: Number of decoding processes, so that a crash of the decoder affects only one file; 0: this process.
        progress: Called with the number of files done, the number of all files, and the number of failed files.

    Raises:
        UserError: If PyAV or Pillow is not installed, or no file can be decoded.
    """
    broken: dict[Path, str] = {}
    checked = map_in_order(_problem, paths, workers=workers, died=_crashed)
    for done, (path, problem) in enumerate(checked, start=1):
        if problem is not None:
            broken[path] = problem
        progress(done, len(paths), len(broken))
    kept = tuple(path for path in paths if path not in broken)
    if not kept:
        first = next(iter(broken.values()))
        raise UserError(f"None of the {len(paths)} files can be decoded. The first: {first}", "Give other files.")
    return kept, broken


def _problem(path: Path) -> str | None:
    try:
        middle_frame(path)
    except MediaError as error:
        return error.message
    return None


def _crashed(path: Path) -> str | None:
    return f"{path} crashes the decoder."
