"""Features without weights: colours of a coarse grid, what moves, where, and which way its edges run. No torch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from meltr.video.frames.pictures import Picture, resize
from meltr.video.frames.source import Frames
from meltr_univl.features.reading import Features

Array = npt.NDArray[np.floating]

HEIGHT, WIDTH = 36, 48
"""Size of the pictures that are looked at."""

ROWS, COLUMNS = 3, 4
"""Cells of the grid."""

DIRECTIONS = 12
"""Directions of edges that are told apart, all around: from dark to light counts."""

LEAST = 0.1
"""Change of a pixel (of 1) from which it counts as moving."""

TINY = 1e-6


class Grid:
    """Numbers that say what a short clip looks like, made next to no time: for miniatures, and as a floor.

    Of the 80 numbers, each about 0 to 1: 36 are the mean colours of the cells; 12, how much lighter each cell becomes;
    5, where the picture changes (mean row and column, their deviations, and the part of the picture); 3, the colour
    there at the end; 12, the directions of the edges there; 12, those of the whole picture. What changes is taken
    wherever it is, so that a small model need not learn every shape in every place.
    """

    name = "grid"
    width = ROWS * COLUMNS * 4 + 5 + 3 + 2 * DIRECTIONS
    rate = 4.0
    frames = 2
    weights: str | None = None

    def prepare(self, picture: Picture) -> Picture:
        """Return a picture in the size that is looked at, (36, 48, 3)."""
        return resize(picture, HEIGHT, WIDTH)

    def vectors(self, clips: Frames) -> Features:
        """Return (N, 80) for clips (N, 2, 36, 48, 3)."""
        pixels = clips.astype(np.float32) / np.float32(255)
        last = pixels[:, -1]
        change = np.abs(np.diff(pixels, axis=1)).max((1, -1))
        change[change <= LEAST] = 0
        mass = change.sum((1, 2)) + TINY
        colour = (last * change[..., None]).sum((1, 2)) / mass[:, None]
        grey = last.mean(-1)
        parts = (*_cells(pixels), _place(change, mass), colour, _edges(grey, change), _edges(grey, np.ones_like(grey)))
        return np.concatenate(parts, axis=1).astype(np.float32)


def _cells(pixels: Array) -> tuple[Array, Array]:
    """Return mean colour (N, 36) and change in lightness from first to last frame (N, 12) of each cell."""
    count, frames = pixels.shape[:2]
    cells = pixels.reshape(count, frames, ROWS, HEIGHT // ROWS, COLUMNS, WIDTH // COLUMNS, 3).mean((3, 5))
    lighter = (cells[:, -1] - cells[:, 0]).mean(-1)
    return cells.mean(1).reshape(count, -1), lighter.reshape(count, -1)


def _place(change: Array, mass: Array) -> Array:
    """Return where the change is, (N, 5): mean row and column, their deviations, all of 1, and its part of all."""
    found = []
    for positions in (np.arange(HEIGHT)[:, None] / HEIGHT, np.arange(WIDTH) / WIDTH):
        mean = (change * positions).sum((1, 2)) / mass
        spread = (change * (positions - mean[:, None, None]) ** 2).sum((1, 2)) / mass
        found += [mean, np.sqrt(spread)]
    return np.stack([*found, (change > 0).mean((1, 2))], axis=1)


def _edges(grey: Array, weight: Array) -> Array:
    """Return a histogram of the directions of the gradient, (N, 12), of sum 1; zero where there is none."""
    down, right = np.gradient(grey, axis=(1, 2))
    strength = np.hypot(down, right) * weight
    direction = (np.arctan2(down, right) / (2 * np.pi) % 1 * DIRECTIONS).astype(np.int64) % DIRECTIONS
    sums = np.stack([(strength * (direction == each)).sum((1, 2)) for each in range(DIRECTIONS)], axis=1)
    histogram: Array = sums / (sums.sum(1, keepdims=True) + TINY)
    return histogram
