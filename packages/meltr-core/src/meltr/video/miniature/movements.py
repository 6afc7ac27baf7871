"""How a shape moves: each movement as a function of time. Lengths are in heights of the picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

TRAVEL = 0.5
"""Length of a way in one direction; half of it in a clip of two phases."""


@dataclass(frozen=True, slots=True)
class Movement:
    """What a shape does for a while.

    Args:
        name: A key of `MOVEMENTS`.
        times: How often, for movements that come back.
    """

    name: str
    times: int = 1


@dataclass(frozen=True, slots=True)
class Track:
    """Where a shape is and how it looks, frame by frame; each array has shape (T,).

    Args:
        x: To the right.
        y: Downwards.
        scale: Factor of its size.
        stretch: Factor of its width.
        opacity: 0: not to be seen.
    """

    x: Array
    y: Array
    scale: Array
    stretch: Array
    opacity: Array

    def after(self, earlier: Track) -> Track:
        """Return the track that goes on where `earlier` stopped: `earlier` and then this one."""
        return Track(
            x=np.concatenate([earlier.x, earlier.x[-1:] + self.x]),
            y=np.concatenate([earlier.y, earlier.y[-1:] + self.y]),
            scale=np.concatenate([earlier.scale, earlier.scale[-1:] * self.scale]),
            stretch=np.concatenate([earlier.stretch, earlier.stretch[-1:] * self.stretch]),
            opacity=np.concatenate([earlier.opacity, earlier.opacity[-1:] * self.opacity]),
        )


def _wave(t: Array, times: int) -> Array:
    """Return 0 -> 1 -> 0, `times` times."""
    return np.sin(np.pi * times * t) ** 2


def _swing(t: Array, times: int) -> Array:
    """Return one and a half swings for ``times=1``: three frames of it do not look like a straight way."""
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
"""Name -> what changes, as a function of time in [0, 1] and the number of times."""

STRAIGHT = ("left", "right", "rise", "fall")
"""Ways in one direction: the reverse shows the same pictures in another order."""

STEADY = (*STRAIGHT, "grow", "shrink", "circle", "sway")
"""Movements that fill a clip."""

PHASES = (*STRAIGHT, "grow", "shrink")
"""Movements of which two make a clip."""

REPEATED = ("hop", "sway", "swell", "blink", "circle", "stretch")
"""Movements that come back: done two or four times, each shows in three, four and five even samples of a clip."""


def track(movements: Sequence[Movement], frames: int) -> Track:
    """Return the track of `movements`, one after the other, each for an equal part of the clip.

    Args:
        movements: At least one.
        frames: T, frames of the clip.
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
