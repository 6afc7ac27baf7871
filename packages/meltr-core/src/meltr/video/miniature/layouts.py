"""What the writer of one data set's layout provides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from meltr.video.miniature.movements import PHASES, REPEATED, STEADY, Movement
from meltr.video.miniature.scenes import PLACES, Scene

Splits = Mapping[str, Sequence[Scene]]
"""Split -> its clips."""

ONE_MOVEMENT = tuple((Movement(name),) for name in STEADY)
"""Clips in which one thing happens."""

REPETITIONS = tuple((Movement(name, times),) for name in REPEATED for times in (2, 4))
"""Clips in which something happens two or four times."""

TWO_PHASES = tuple((Movement(first), Movement(second)) for first in PHASES for second in PHASES if first != second)
"""Clips in which one thing happens and then another."""


DARK = ("space",)
"""For data sets whose classes are movements: a small model learns that from a few hundred clips before a dark, nearly
even background, and not before patterns that differ from clip to clip."""


@dataclass(frozen=True)
class SampleLayout:
    """A data set's layout.

    Args:
        movements: What may happen in its clips.
        splits: The splits that it has as published.
        annotate: Called with the folder, the scenes of each split and a source of randomness; writes the annotations
            and returns which file shall show which scene.
        places: Backgrounds of its clips.
        fewest: Clips that training needs at least: every class must occur.
    """

    movements: tuple[tuple[Movement, ...], ...]
    splits: tuple[str, ...]
    annotate: Callable[[Path, Splits, np.random.Generator], dict[Path, Scene]]
    places: tuple[str, ...] = PLACES
    fewest: int = 1


def numbered(splits: Splits) -> list[tuple[str, int, Scene]]:
    """Return (split, number, scene) for all scenes; numbers go on from split to split and start with 1."""
    scenes = [(split, scene) for split, each in splits.items() for scene in each]
    return [(split, number, scene) for number, (split, scene) in enumerate(scenes, start=1)]
