"""Movements of a shape as functions of time. Lengths are in units of the picture's height."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

TRAVEL = 0.5
"""Distance of a straight movement; half of it in a clip with two phases."""


@dataclass(frozen=True, slots=True)
class Movement:
    """One movement of a shape.

    Args:
        name: A key of `MOVEMENTS`.
        times: Number of repetitions, for periodic movements.
    """

    name: str
    times: int = 1


@dataclass(frozen=True, slots=True)
class Track:
    """Position and appearance of a shape in each frame; each array has shape (T,).

    Args:
        x: Horizontal position, to the right.
        y: Vertical position, downwards.
        scale: Factor on its size.
        stretch: Factor on its width.
        opacity: 0: invisible; 1: opaque.
    """

    x: Array
    y: Array
    scale: Array
    stretch: Array
    opacity: Array

    def after(self, earlier: Track) -> Track:
        """Return `earlier` followed by this track, which continues from the last state of `earlier`."""
        return Track(
            x=np.concatenate([earlier.x, earlier.x[-1:] + self.x]),
            y=np.concatenate([earlier.y, earlier.y[-1:] + self.y]),
            scale=np.concatenate([earlier.scale, earlier.scale[-1:] * self.scale]),
            stretch=np.concatenate([earlier.stretch, earlier.stretch[-1:] * self.stretch]),
            opacity=np.concatenate([earlier.opacity, earlier.opacity[-1:] * self.opacity]),
        )


def _wave(t: Array, times: int) -> Array:
    """Return a wave 0 -> 1 -> 0, `times` times."""
    return np.sin(np.pi * times * t) ** 2


def _swing(t: Array, times: int) -> Array:
    """Return `times` swings, but 1.5 for ``times=1``, so that three frames do not look like a straight movement."""
    return np.sin((3 if times == 1 else 2 * times) * np.pi * t)


MOVEMENTS: Mapping[str, Callable[[Array, int], dict[str, Array]]] = {
    "left": lambda t, times: {"x": -TRAVEL * t},
    "right": lambda t, times: {"x": TRAVEL * t},
    "rise": lambda t, times: {"y": -TRAVEL * t},
    "fall": lambda t, times: {"y": TRAVEL * t},
    "grow": lambda t, times: {"scale": 2.25 ** (t - 0.5)},
    "shrink": lambda t, times: {"scale": 2.25 ** (0.5 - t)},
    "circle": lambda t, times: {
        "x": 0.2 * np.sin(2 * np.pi * times * t),
        "y": -0.2 * np.cos(2 * np.pi * times * t),
    },
    "sway": lambda t, times: {"x": 0.25 * _swing(t, times)},
    "hop": lambda t, times: {"y": -0.4 * _wave(t, times)},
    "swell": lambda t, times: {"scale": 0.8 + 0.8 * _wave(t, times)},
    "blink": lambda t, times: {"opacity": 1 - _wave(t, times)},
    "stretch": lambda t, times: {"stretch": 1 + _wave(t, times)},
}
"""Name -> function of time in [0, 1] and the number of repetitions that returns the changed fields of `Track`."""

STRAIGHT = ("left", "right", "rise", "fall")
"""Straight movements: the reverse movement shows the same pictures in reverse order."""

STEADY = (*STRAIGHT, "grow", "shrink", "circle", "sway")
"""Movements that can fill a whole clip."""

PHASES = (*STRAIGHT, "grow", "shrink")
"""Movements that can be combined in pairs in a clip."""

REPEATED = ("hop", "sway", "swell", "blink", "circle", "stretch")
"""Periodic movements. Repeated two or four times, each is visible in three, four and five evenly spaced frames."""


def track(movements: Sequence[Movement], frames: int) -> Track:
    """Return the track of `movements` in sequence, each for an equal part of the clip.

    Args:
        movements: The movements, at least one.
        frames: T, the number of frames of the clip.
    """
    bounds = [round(frames * part / len(movements)) for part in range(len(movements) + 1)]
    pieces = [_piece(each, stop - start) for each, start, stop in zip(movements, bounds, bounds[1:], strict=False)]
    whole = pieces[0]
    for piece in pieces[1:]:
        whole = piece.after(whole)
    return whole


def _piece(movement: Movement, frames: int) -> Track:
    t = (np.arange(frames) + 0.5) / frames
    changes = MOVEMENTS[movement.name](t, movement.times)
    zero, one = np.zeros(frames), np.ones(frames)
    neutral = {"x": zero, "y": zero, "scale": one, "stretch": one, "opacity": one}
    return Track(**{**neutral, **changes})
