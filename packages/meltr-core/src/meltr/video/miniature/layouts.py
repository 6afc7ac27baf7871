"""Interface of the writers, one per data set layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from meltr.video.miniature.movements import PHASES, REPEATED, STEADY, Movement
from meltr.video.miniature.scenes import PLACES, Scene

Splits = Mapping[str, Sequence[Scene]]
"""Split -> its scenes."""

ONE_MOVEMENT = tuple((Movement(name),) for name in STEADY)
"""Clips with one movement."""

REPETITIONS = tuple((Movement(name, times),) for name in REPEATED for times in (2, 4))
"""Clips in which one movement is repeated two or four times."""

TWO_PHASES = tuple((Movement(first), Movement(second)) for first in PHASES for second in PHASES if first != second)
"""Clips with two different movements, one after the other."""


DARK = ("space",)
"""Background for data sets whose classes are movements. A small model learns movements from a few hundred clips in
front of a dark, nearly uniform background, but not in front of patterns that differ from clip to clip."""


@dataclass(frozen=True)
class SampleLayout:
    """Layout of a data set.

    Args:
        movements: The possible movements in its clips.
        splits: Its published splits.
        annotate: Called with the folder, the scenes of each split and a random generator; writes the annotations and
            returns file -> scene for the clips to write.
        places: Backgrounds of its clips.
        fewest: Minimum number of training clips; every class must occur.
    """

    movements: tuple[tuple[Movement, ...], ...]
    splits: tuple[str, ...]
    annotate: Callable[[Path, Splits, np.random.Generator], dict[Path, Scene]]
    places: tuple[str, ...] = PLACES
    fewest: int = 1


def numbered(splits: Splits) -> list[tuple[str, int, Scene]]:
    """Return (split, number, scene) for all scenes, numbered from 1 across the splits."""
    scenes = [(split, scene) for split, each in splits.items() for scene in each]
    return [(split, number, scene) for number, (split, scene) in enumerate(scenes, start=1)]
