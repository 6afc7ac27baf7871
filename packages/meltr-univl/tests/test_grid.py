"""Features without weights say what changes, where, of which colour and shape."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from meltr.video.miniature.rendering import OUTLINES
from meltr_univl.features.grid import COLUMNS, DIRECTIONS, HEIGHT, ROWS, WIDTH, Grid

COLOURS, LIGHTER = slice(0, 36), slice(36, 48)
PLACE, COLOUR, EDGES, ALL_EDGES = slice(48, 53), slice(53, 56), slice(56, 68), slice(68, 80)


def vector(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    grid = Grid()
    found = grid.vectors(np.stack([grid.prepare(before), grid.prepare(after)])[None])
    assert found.shape == (1, grid.width)
    assert found.dtype == np.float32
    return found[0]


def black(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.zeros((height, width, 3), np.uint8)


def test_cells_hold_mean_colours_and_what_gets_lighter() -> None:
    after = black()
    after[:12, 12:24] = (250, 100, 50)  # all of the second cell of the first row
    found = vector(black(), after)
    colours, lighter = found[COLOURS].reshape(ROWS, COLUMNS, 3), found[LIGHTER].reshape(ROWS, COLUMNS)
    expected = np.zeros((ROWS, COLUMNS, 3))
    expected[0, 1] = (250 / 510, 100 / 510, 50 / 510)  # the mean over both frames
    assert_allclose(colours, expected, atol=1e-6)
    assert_allclose(lighter, expected.mean(-1) * 2, atol=1e-6)


def test_what_changes_is_found_where_it_is() -> None:
    after = black()
    after[20:30, 8:20] = (0, 200, 0)
    row, row_spread, column, column_spread, part = vector(black(), after)[PLACE]
    assert_allclose(row, np.mean(np.arange(20, 30)) / HEIGHT, rtol=1e-4)
    assert_allclose(row_spread, np.std(np.arange(20, 30)) / HEIGHT, rtol=1e-4)
    assert_allclose(column, np.mean(np.arange(8, 20)) / WIDTH, rtol=1e-4)
    assert_allclose(column_spread, np.std(np.arange(8, 20)) / WIDTH, rtol=1e-4)
    assert_allclose(part, 120 / (HEIGHT * WIDTH), rtol=1e-4)
    assert_allclose(vector(black(), after)[COLOUR], [0, 200 / 255, 0], atol=1e-4)


def test_nothing_changes_in_a_still_picture() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    found = vector(picture, picture)
    assert not found[LIGHTER].any()
    assert_allclose(found[PLACE.start : EDGES.stop], 0, atol=1e-6)
    assert_allclose(found[ALL_EDGES].sum(), 1, atol=1e-4)


@pytest.mark.parametrize("angle", [15, 105, 195, 285])
def test_edges_are_told_apart_by_where_it_is_lighter(angle: int) -> None:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    ramp = np.cos(np.radians(angle)) * x + np.sin(np.radians(angle)) * y
    grey = np.clip(100 + 2 * (ramp - ramp.mean()), 0, 255).astype(np.uint8)
    found = vector(black(), np.repeat(grey[..., None], 3, -1))[ALL_EDGES]
    assert found.argmax() == angle * DIRECTIONS // 360


def shape(name: str, x: float, y: float, size: float) -> np.ndarray:
    """A white shape of a miniature on black."""
    rows, columns = np.mgrid[:72, :96]
    inside = OUTLINES[name]((columns / 72 - x) / size, (rows / 72 - y) / size) < 0
    return np.repeat(np.where(inside, 255, 0).astype(np.uint8)[..., None], 3, -1)


def test_a_shape_is_known_wherever_it_is() -> None:
    """The nearest vector of edges, of shapes in the middle, is that of the same shape elsewhere in another size."""
    known = {name: vector(black(72, 96), shape(name, 0.66, 0.5, 0.3))[EDGES] for name in ("ball", "square", "triangle")}
    for name in known:
        for place in ((0.3, 0.3, 0.24), (1.0, 0.65, 0.27)):
            found = vector(black(72, 96), shape(name, *place))[EDGES]
            assert min(known, key=lambda each: np.abs(known[each] - found).sum()) == name
