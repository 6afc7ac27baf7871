"""Contact sheet: one picture with the files of a prediction, best first. Imports Pillow on first use."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meltr.context import FILE_KEYS
from meltr.errors import UserError
from meltr.files import write_bytes
from meltr.video.frames.media import require
from meltr.video.frames.media_files import middle_frame

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont
    from PIL.ImageFont import ImageFont as BitmapFont

    Font = FreeTypeFont | BitmapFont

COLUMNS, WIDTH, HEIGHT, MARGIN = 5, 240, 180, 16
"""Tiles per row; size of the box of a picture and the space around it, in pixels."""

TEXT, LINE = 15, 20
"""Height of the text and of a line, in pixels."""

PAPER, BOX, FRAME, INK, FAINT = "white", "#eeeeee", "#cccccc", "#111111", "#666666"


@dataclass(frozen=True)
class Tile:
    """One file of a sheet.

    Args:
        path: A video, shown by its middle frame, or an image.
        caption: Text below the picture, above the file name.
    """

    path: Path
    caption: str


def tiles_of(rows: Sequence[Mapping[str, Any]]) -> tuple[Tile, ...]:
    """Return one tile per file in the rows of a prediction, with its rank and the other values of its first row.

    Raises:
        UserError: If no row names a file.
    """
    first: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        for key in FILE_KEYS:
            if key in row:
                first.setdefault(os.fspath(row[key]), row)
    if not first:
        raise UserError("There is nothing to draw: this prediction ranks no files.", "Remove --sheet.")
    return tuple(
        Tile(Path(path), "  ".join([f"{rank}.", *(_short(row[key]) for key in row if key not in FILE_KEYS)]))
        for rank, (path, row) in enumerate(first.items(), start=1)
    )


def write_sheet(path: Path, tiles: Sequence[Tile], *, title: str = "") -> None:
    """Draw a sheet into a PNG file, which is written to a temporary file and renamed. Creates the folder.

    Raises:
        UserError: If Pillow is missing, a file of `tiles` cannot be decoded, or `path` cannot be written.
    """
    content = io.BytesIO()
    draw_sheet(tiles, title=title).save(content, format="PNG")
    try:
        write_bytes(path, content.getvalue())
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror or error}.", "Choose another path for the sheet.")


def draw_sheet(tiles: Sequence[Tile], *, title: str = "") -> Image:
    """Return the sheet: up to `COLUMNS` tiles per row, each with a picture in a box, a caption and a file name."""
    image, drawing, fonts = require("PIL.Image"), require("PIL.ImageDraw"), require("PIL.ImageFont")
    font = fonts.load_default(TEXT)
    columns = min(COLUMNS, len(tiles))
    top = MARGIN + (LINE + MARGIN if title else 0)
    step_x, step_y = WIDTH + MARGIN, HEIGHT + 2 * LINE + 2 * MARGIN
    sheet: Image = image.new("RGB", (MARGIN + columns * step_x, top + -(-len(tiles) // columns) * step_y), PAPER)
    pen = drawing.Draw(sheet)
    if title:
        pen.text((MARGIN, MARGIN), _fitted(title, font, sheet.width - 2 * MARGIN), fill=INK, font=font)
    for number, tile in enumerate(tiles):
        x, y = MARGIN + number % columns * step_x, top + number // columns * step_y
        picture = image.fromarray(middle_frame(tile.path))
        picture = require("PIL.ImageOps").contain(picture, (WIDTH, HEIGHT))
        pen.rectangle((x - 1, y - 1, x + WIDTH, y + HEIGHT), fill=BOX, outline=FRAME)
        sheet.paste(picture, (x + (WIDTH - picture.width) // 2, y + (HEIGHT - picture.height) // 2))
        below = y + HEIGHT + MARGIN // 2
        pen.text((x, below), _fitted(tile.caption, font, WIDTH), fill=INK, font=font)
        pen.text((x, below + LINE), _fitted(tile.path.name, font, WIDTH), fill=FAINT, font=font)
    return sheet


def _fitted(text: str, font: Font, width: int) -> str:
    """Return `text`, with its middle replaced by an ellipsis if it is wider than `width` pixels."""
    kept, shown = len(text), text
    while kept > 1 and font.getlength(shown) > width:
        kept -= 1
        shown = f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
    return shown


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
