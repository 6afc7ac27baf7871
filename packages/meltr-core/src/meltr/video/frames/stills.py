"""One reader of still pictures for the whole project: RGB of 8 bits, upright, whatever the file stores.

Imports Pillow on first use only.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from meltr.errors import UserError
from meltr.video.frames.libraries import require

if TYPE_CHECKING:
    from pathlib import Path

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF")
"""Formats of still pictures, by Pillow's names; what a file is called does not matter."""

_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_TRANSPARENT = ("RGBA", "RGBa", "LA", "La", "PA")


class UnsupportedPictureError(UserError):
    """A picture is whole, but its pixels have no known meaning as colours."""


@contextmanager
def opened(source: Path | IO[bytes], formats: tuple[str, ...] = FORMATS) -> Iterator[Any]:
    """Open a picture with Pillow; within this context one with too many pixels to be a photograph is an error.

    Args:
        source: The file, or its content.
        formats: Formats that are tried.

    Raises:
        Exception: Whatever Pillow raises; `PIL.UnidentifiedImageError` if it is none of these formats.
    """
    image = require("PIL.Image")
    with warnings.catch_warnings():
        warnings.simplefilter("error", image.DecompressionBombWarning)
        with image.open(source, formats=formats) as picture:
            yield picture


def rgb(picture: Any) -> Any:
    """Return an opened picture, or its current frame, as an upright picture of mode RGB.

    16 bits per pixel become 8. What is transparent is shown on white. CMYK is converted, palettes are resolved, and the
    orientation in the metadata is applied.

    Args:
        picture: A Pillow image.

    Raises:
        UnsupportedPictureError: If the range of its pixels is unknown (32 bits, floating point), or its colours are
            neither grey, RGB nor CMYK.
    """
    eight = _eight_bits(picture)
    if eight.mode in _TRANSPARENT or "transparency" in eight.info:
        image = require("PIL.Image")
        layer = eight.convert("RGBA")
        eight = image.alpha_composite(image.new("RGBA", layer.size, "white"), layer)
    return _upright(eight.convert("RGB"), picture)


def _eight_bits(picture: Any) -> Any:
    mode, kind = picture.mode, picture.format
    if mode in _SIXTEEN_BITS or (mode == "I" and kind in ("PNG", "PPM")):
        wide = np.asarray(picture).astype(np.float64)
        return require("PIL.Image").fromarray((wide / 257 + 0.5).astype(np.uint8))
    if mode in ("I", "F"):
        what = "floating-point numbers" if mode == "F" else "whole numbers of more than 16 bits"
        raise UnsupportedPictureError(
            f"its pixels are {what}, whose values for black and white are unknown", "Convert it to 8 bits per channel."
        )
    if mode == "LAB":
        raise UnsupportedPictureError("its colours are in CIELAB", "Convert it to RGB.")
    return picture


def _upright(converted: Any, picture: Any) -> Any:
    """Apply the orientation in the metadata; metadata that cannot be read has none."""
    try:
        orientation = picture.getexif().get(0x0112)
    except Exception:  # the parser of metadata can raise anything, and the pixels are whole
        return converted
    transpose = require("PIL.Image").Transpose
    turns = {
        2: transpose.FLIP_LEFT_RIGHT,
        3: transpose.ROTATE_180,
        4: transpose.FLIP_TOP_BOTTOM,
        5: transpose.TRANSPOSE,
        6: transpose.ROTATE_270,
        7: transpose.TRANSVERSE,
        8: transpose.ROTATE_90,
    }
    return converted.transpose(turns[orientation]) if orientation in turns else converted
