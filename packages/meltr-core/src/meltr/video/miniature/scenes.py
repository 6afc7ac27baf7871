"""What a clip shows: a shape that moves over a background, and up to two that stand still.

Everything that a question may ask for is drawn in equal numbers and independently of everything else, so that nothing
can be guessed: in a split, the answers to a question of one kind are as frequent as each other to within one.
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
"""Most shapes that stand still in a scene."""

FRAMES = (12, 16)
"""Fewest and most frames of a clip."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Thing:
    """A shape of a colour."""

    shape: str
    colour: str


@dataclass(frozen=True, slots=True)
class Scene:
    """One clip.

    Args:
        thing: The shape that moves; no other one of the scene has its shape or its colour.
        movements: What it does, one after the other.
        place: The background.
        still: Shapes that stand still.
        frames: Frames of the clip.
        seed: Of what no question asks for: positions, sizes, the pattern of the background.
    """

    thing: Thing
    movements: tuple[Movement, ...]
    place: str
    still: tuple[Thing, ...]
    frames: int
    seed: int


def balanced(values: Sequence[T], count: int, rng: np.random.Generator) -> list[T]:
    """Return `count` of `values` in random order, each as often as the others to within one."""
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

    No two scenes agree in shape, colour, movements and place as long as there are enough combinations (half of all).

    Args:
        count: How many.
        movements: What may happen in a clip; the clips show them in equal numbers.
        rng: Where the randomness comes from.
        places: Backgrounds.
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
    """Exchange places or movements between scenes, which keeps the balance, until no two look alike."""
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
