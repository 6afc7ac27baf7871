"""Read one picture as a square of bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from meltr.errors import MeltrError
from meltr.limits import UnreadableError, require_regular
from meltr.video.frames.stills import FORMATS, opened, rgb

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".jfif"})
"""Endings of image files."""

NOT_READ = frozenset(
    {".heic", ".heif", ".avif", ".jp2", ".jxl", ".svg", ".psd", ".tga", ".ico", ".dng", ".cr2", ".nef"}
)
"""Endings of images that are not read; each counts as one that is broken, so that none is missing without a word."""


def read_square(file: Path, size: int, *, channels: int = 3) -> npt.NDArray[np.uint8] | str:
    """Return one image as (channels, size, size), or the reason why it cannot be read.

    It is read as `meltr.video.frames.stills` says: upright, with 8 bits per channel, on white where it is transparent.

    Args:
        file: The image; an animated one gives its first frame.
        size: Length in pixels that the shorter side is resized to; then the centre is cropped.
        channels: 3: RGB; 1: grey.
    """
    if file.suffix.lower() in NOT_READ:
        return f"{file.suffix} files are not read"
    try:
        require_regular(file)
        with opened(file, (*FORMATS, "GIF")) as picture:
            whole = rgb(picture)
        if channels == 1:
            whole = whole.convert("L")
        wide, high = (size * side // min(whole.size) for side in whole.size)
        left, top = round((wide - size) / 2), round((high - size) / 2)
        resized = whole if (wide, high) == whole.size else whole.resize((wide, high), Image.Resampling.BILINEAR)
        square = np.asarray(resized.crop((left, top, left + size, top + size)))
        return square.reshape(size, size, channels).transpose(2, 0, 1)
    except UnreadableError as error:
        return error.problem
    except MeltrError as error:
        return error.message
    except UnidentifiedImageError:
        return "is not an image that can be read"
    except OSError as error:
        return error.strerror or str(error)
    except Exception as error:  # a broken image can make the decoder raise anything
        return f"{type(error).__name__}: {error}"
