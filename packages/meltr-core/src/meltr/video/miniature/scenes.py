"""Content of a clip: a shape that moves over a background, and up to two static shapes.

Every property that a question may ask for is drawn in equal numbers and independently of the others, so that no answer
can be guessed. In a split, all answers to questions of one kind are equally frequent, to within one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from meltr.video.miniature.movements import Movement

SHAPES = ("ball", "square", "triangle", "star", "ring", "cross")
COLOURS = ("red", "green", "blue", "yellow", "purple", "white")
PLACES = ("grass", "sand", "water", "snow", "space")
MOST_STILL = 2
"""Largest number of static shapes in a scene."""

FRAMES = (12, 16)
"""Smallest and largest number of frames of a clip."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Thing:
    """A coloured shape."""

    shape: str
    colour: str


@dataclass(frozen=True, slots=True)
class Scene:
    """One clip.

    Args:
        thing: The moving shape; no other one in the scene has its shape or its colour.
        movements: Its movements, in sequence.
        place: The background.
        still: The static shapes.
        frames: Number of frames of the clip.
        seed: Seed of the properties that no question asks for: positions, sizes, the pattern of the background.
    """

    thing: Thing
    movements: tuple[Movement, ...]
    place: str
    still: tuple[Thing, ...]
    frames: int
    seed: int


def balanced(values: Sequence[T], count: int, rng: np.random.Generator) -> list[T]:
    """Return `count` elements of `values` in random order; each occurs equally often, to within one."""
    order = rng.permutation(len(values))
    picks = rng.permutation(order[np.arange(count) % len(values)])
    return [values[pick] for pick in picks]


def draw(
    count: int,
    movements: Sequence[tuple[Movement, ...]],
    rng: np.random.Generator,
    places: Sequence[str] = PLACES,
) -> list[Scene]:
    """Draw scenes that are balanced in shape, colour, place, number of shapes and `movements`.

    No two scenes have the same shape, colour, movements and place, if `count` is at most half of all combinations.

    Args:
        count: Number of scenes.
        movements: The possible movements of a clip, drawn in equal numbers.
        rng: Source of randomness.
        places: The possible backgrounds.
    """
    shapes, colours = balanced(SHAPES, count, rng), balanced(COLOURS, count, rng)
    happenings, grounds = balanced(movements, count, rng), balanced(places, count, rng)
    numbers = balanced(range(MOST_STILL + 1), count, rng)
    scenes = []
    for shape, colour, moves, place, number in zip(shapes, colours, happenings, grounds, numbers, strict=True):
        thing = Thing(shape, colour)
        frames = int(rng.integers(FRAMES[0], FRAMES[1] + 1))
        scenes.append(Scene(thing, moves, place, _still(thing, number, rng), frames, int(rng.integers(2**31))))
    if 2 * count <= len(SHAPES) * len(COLOURS) * len(places) * len(movements):
        _make_distinct(scenes, rng)
    return scenes


def _still(thing: Thing, number: int, rng: np.random.Generator) -> tuple[Thing, ...]:
    """Return `number` shapes that share neither shape nor colour with `thing` or each other."""
    shapes = rng.permutation([shape for shape in SHAPES if shape != thing.shape])[:number]
    colours = rng.permutation([colour for colour in COLOURS if colour != thing.colour])[:number]
    return tuple(Thing(str(shape), str(colour)) for shape, colour in zip(shapes, colours, strict=True))


def _make_distinct(scenes: list[Scene], rng: np.random.Generator) -> None:
    """Exchange places or movements between scenes, which keeps the balance, until no two are the same."""
    seen = Counter(_looks(scene) for scene in scenes)
    while max(seen.values(), default=0) > 1:
        for index, scene in enumerate(scenes):
            if seen[_looks(scene)] > 1:
                other = int(rng.integers(len(scenes)))
                partner = scenes[other]
                seen.subtract([_looks(scene), _looks(partner)])
                if rng.random() < 0.5:
                    scenes[index] = replace(scene, place=partner.place)
                    scenes[other] = replace(partner, place=scene.place)
                else:
                    scenes[index] = replace(scene, movements=partner.movements)
                    scenes[other] = replace(partner, movements=scene.movements)
                seen.update([_looks(scenes[index]), _looks(scenes[other])])


def _looks(scene: Scene) -> tuple[Thing, tuple[Movement, ...], str]:
    return scene.thing, scene.movements, scene.place
