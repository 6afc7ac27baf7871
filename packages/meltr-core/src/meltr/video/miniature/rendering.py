"""Rendering of a scene with signed distances, so that edges are smooth and motion has subpixel precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from meltr.video.frames.source import Frames
from meltr.video.miniature.movements import Track, track
from meltr.video.miniature.scenes import Scene, Thing

HEIGHT, WIDTH = 72, 96
"""Size of the pictures in pixels."""

RADIUS = (0.18, 0.21)
"""Smallest and largest radius of the moving shape, in units of the picture's height, before it grows or shrinks."""

STILL_RADIUS = 0.09
"""Radius of a static shape, in units of the picture's height."""

RGB: Mapping[str, tuple[int, int, int]] = {
    "red": (235, 45, 40),
    "green": (60, 215, 70),
    "blue": (55, 95, 255),
    "yellow": (255, 225, 40),
    "purple": (190, 60, 215),
    "white": (250, 250, 250),
}

EDGE_WIDTH, EDGE_TONE = 1.2, (15, 15, 20)
"""Width in pixels and colour of the dark edge of every shape, which keeps white visible on snow and green on grass."""

Array = npt.NDArray[np.float64]
Canvas = npt.NDArray[np.float32]


def _box(x: Array, y: Array, half_width: float, half_height: float) -> Array:
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def _star(x: Array, y: Array) -> Array:
    """Return the signed distance to the nearest edge of a star with five points, one of them up."""
    turn = 2 * np.pi / 5
    angle = np.abs((np.arctan2(x, -y) + turn / 2) % turn - turn / 2)
    length = np.hypot(x, y)
    along, across = length * np.cos(angle), length * np.sin(angle)
    inner = 0.48 * np.array([np.cos(turn / 2), np.sin(turn / 2)])
    normal = np.array([inner[1], 1 - inner[0]])
    distance: Array = ((along - 1) * normal[0] + across * normal[1]) / np.hypot(*normal)
    return distance


def _triangle(x: Array, y: Array) -> Array:
    return np.maximum(y - 0.7, 0.87 * np.abs(x) - 0.5 * y - 0.5)


OUTLINES: Mapping[str, Callable[[Array, Array], Array]] = {
    "ball": lambda x, y: np.hypot(x, y) - 0.95,
    "square": lambda x, y: _box(x, y, 0.85, 0.85),
    "triangle": _triangle,
    "star": _star,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.72) - 0.26,
    "cross": lambda x, y: np.minimum(_box(x, y, 1.0, 0.33), _box(x, y, 0.33, 1.0)),
}
"""Shape -> signed distance to its edge, negative inside; the shape has radius 1."""


def render(scene: Scene) -> Frames:
    """Return the pictures of a scene, shape (T, `HEIGHT`, `WIDTH`, 3)."""
    rng = np.random.default_rng(scene.seed)
    path = track(scene.movements, scene.frames)
    radius = rng.uniform(*RADIUS)
    x, y = _place(path, radius, rng)
    size = radius * path.scale
    canvas = _background(scene.place, rng)[None]
    taken = [(x, y, size)]
    for thing in scene.still:
        taken.append(_free_spot(taken, rng))
        _paint(canvas, thing, at=taken[-1], width=taken[-1][2])
    canvas = canvas.repeat(scene.frames, axis=0)
    _paint(canvas, scene.thing, at=(x, y, size), width=size * path.stretch, opacity=path.opacity)
    return (canvas + 0.5).astype(np.uint8)


def _place(path: Track, radius: float, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return the position of the shape in each frame, shape (T,) each: random, but inside the picture."""
    placed = []
    for along, size, room in (
        (path.x, radius * path.scale * path.stretch, WIDTH / HEIGHT),
        (path.y, radius * path.scale, 1.0),
    ):
        low, high = float((size - along).max()), float((room - size - along).min())
        # A path too long for the picture is centred: it leaves the picture by the same amount at both ends.
        start = rng.uniform(low, high) if low < high else (low + high) / 2
        placed.append(along + start)
    return placed[0], placed[1]


def _free_spot(taken: list[tuple[Array, Array, Array]], rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Return centre and radius of the position that is farthest from all `taken` ones, out of forty random tries."""
    margin = STILL_RADIUS + 0.02
    x = rng.uniform(margin, WIDTH / HEIGHT - margin, 40)
    y = rng.uniform(margin, 1 - margin, 40)
    room = np.min(
        [(np.hypot(x[:, None] - a, y[:, None] - b) - size).min(axis=1) for a, b, size in taken],
        axis=0,
    )
    best = int(room.argmax())
    return x[best : best + 1], y[best : best + 1], np.full(1, STILL_RADIUS)


def _paint(
    canvas: Canvas, thing: Thing, *, at: tuple[Array, Array, Array], width: Array, opacity: Array | None = None
) -> None:
    """Paint a shape with a dark edge, in place.

    Args:
        canvas: Shape (T, H, W, 3).
        thing: The shape to paint.
        at: Centre and radius in each frame, shape (T,) each.
        width: Its horizontal radius, shape (T,).
        opacity: Shape (T,); None: 1.
    """
    x, y, radius = (part[:, None, None] for part in at)
    u = ((np.arange(WIDTH) + 0.5) / HEIGHT - x) / width[:, None, None]
    v = ((np.arange(HEIGHT)[:, None] + 0.5) / HEIGHT - y) / radius
    distance = OUTLINES[thing.shape](u, v) * radius * HEIGHT
    visible = 1.0 if opacity is None else opacity[:, None, None]
    for edge, tone in ((EDGE_WIDTH, EDGE_TONE), (0.0, RGB[thing.colour])):
        cover = (np.clip(0.5 + edge - distance, 0, 1) * visible)[..., None].astype(np.float32)
        canvas += cover * (np.asarray(tone, dtype=np.float32) - canvas)


def _background(place: str, rng: np.random.Generator) -> Canvas:
    """Return the picture of a place, shape (`HEIGHT`, `WIDTH`, 3); each place has its own colour and pattern."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float64)
    phase, light = rng.uniform(0, 2 * np.pi, 2), rng.uniform(0.9, 1.1)
    grain = rng.random((HEIGHT // 3, WIDTH // 3)).repeat(3, axis=0).repeat(3, axis=1)
    if place == "grass":
        tone, pattern = (52, 92, 40), 14 * np.sin(1.6 * x + 2 * np.sin(0.4 * y + phase[0])) * (y % 9 > 3)
    elif place == "sand":
        tone, pattern = (176, 150, 104), 18 * (grain - 0.5)
    elif place == "water":
        tone, pattern = (28, 66, 104), 16 * np.sin(0.7 * y + 1.5 * np.sin(0.16 * x + phase[0]) + phase[1])
    elif place == "snow":
        tone, pattern = (196, 204, 214), 8 * np.sin(0.08 * x + phase[0]) * np.sin(0.11 * y + phase[1])
    else:
        tone, pattern = (12, 12, 24), 150 * (grain > 0.98)
    picture: Canvas = np.clip(light * (np.asarray(tone) + pattern[..., None]), 0, 255).astype(np.float32)
    return picture
