"""Features without weights: colours of a coarse grid, position and colour of motion, and directions of edges.

This module does not import torch.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from meltr.video.frames.pictures import Picture, resize
from meltr.video.frames.source import Frames
from meltr_univl.features.reading import Features

Array = npt.NDArray[np.floating]

HEIGHT, WIDTH = 36, 48
"""Size of the pictures that features are computed from."""

ROWS, COLUMNS = 3, 4
"""Cells of the grid."""

DIRECTIONS = 12
"""Directions of edges that are distinguished, over the full circle: dark to light differs from light to dark."""

LEAST = 0.1
"""Smallest change of a pixel in [0, 1] that counts as motion."""

TINY = 1e-6


class Grid:
    """Cheap appearance and motion features of a short clip, for synthetic samples and as a baseline.

    A vector has 80 numbers, each about 0 to 1:

    - 36: mean colour of each cell;
    - 12: change of lightness of each cell;
    - 5: where the picture changes (mean row and column, their deviations, and the fraction of the picture);
    - 3: colour of the changing part in the last frame;
    - 12: directions of the edges in that part;
    - 12: directions of the edges in the whole picture.

    The changing part is described independently of its position, so that a small model need not learn every shape in
    every place.
    """

    name = "grid"
    width = ROWS * COLUMNS * 4 + 5 + 3 + 2 * DIRECTIONS
    rate = 4.0
    frames = 2
    weights: str | None = None

    def prepare(self, picture: Picture) -> Picture:
        """Return a picture resized to (36, 48, 3)."""
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
    """Return the mean colour (N, 36) and the change of lightness from first to last frame (N, 12) of each cell."""
    count, frames = pixels.shape[:2]
    cells = pixels.reshape(count, frames, ROWS, HEIGHT // ROWS, COLUMNS, WIDTH // COLUMNS, 3).mean((3, 5))
    lighter = (cells[:, -1] - cells[:, 0]).mean(-1)
    return cells.mean(1).reshape(count, -1), lighter.reshape(count, -1)


def _place(change: Array, mass: Array) -> Array:
    """Return where the change is, (N, 5): mean row and column, their deviations, and its fraction; each in [0, 1]."""
    found = []
    for positions in (np.arange(HEIGHT)[:, None] / HEIGHT, np.arange(WIDTH) / WIDTH):
        mean = (change * positions).sum((1, 2)) / mass
        spread = (change * (positions - mean[:, None, None]) ** 2).sum((1, 2)) / mass
        found += [mean, np.sqrt(spread)]
    return np.stack([*found, (change > 0).mean((1, 2))], axis=1)


def _edges(grey: Array, weight: Array) -> Array:
    """Return a histogram of gradient directions, (N, 12), with sum 1; zero if there is no gradient."""
    down, right = np.gradient(grey, axis=(1, 2))
    strength = np.hypot(down, right) * weight
    direction = (np.arctan2(down, right) / (2 * np.pi) % 1 * DIRECTIONS).astype(np.int64) % DIRECTIONS
    sums = np.stack([(strength * (direction == each)).sum((1, 2)) for each in range(DIRECTIONS)], axis=1)
    histogram: Array = sums / (sums.sum(1, keepdims=True) + TINY)
    return histogram
