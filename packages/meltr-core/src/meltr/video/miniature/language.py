"""Text for a scene: captions, open and multiple-choice questions. The words of a question never reveal its answer.

A question may name the shape, the colour or the place of the moving shape, but only if it asks for another property,
which was drawn independently of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from meltr.video.miniature.movements import PHASES, REPEATED, STRAIGHT
from meltr.video.miniature.scenes import Scene, Thing

NUMBERS = ("one", "two", "three")

OTHER_NAMES: Mapping[str, tuple[str, ...]] = {
    "ball": ("ball", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "ring": ("ring", "hoop"),
    "cross": ("cross", "plus sign"),
}
"""Shape -> names used in captions."""

WHERE: Mapping[str, tuple[str, ...]] = {
    "grass": ("over the grass", "on the grass", "across a meadow"),
    "sand": ("over the sand", "on the sand", "across a beach"),
    "water": ("over the water", "on the water", "across the sea"),
    "snow": ("over the snow", "on the snow", "across a field of snow"),
    "space": ("in space", "in the dark of space", "in the night sky"),
}
"""Place -> phrases that contain no words for colours or shapes."""

DOES: Mapping[str, tuple[str, ...]] = {
    "left": ("moves to the left", "slides left", "is going left"),
    "right": ("moves to the right", "slides right", "is going right"),
    "rise": ("moves up", "rises", "is rising"),
    "fall": ("moves down", "falls", "is falling"),
    "grow": ("grows", "becomes larger", "is growing"),
    "shrink": ("shrinks", "becomes smaller", "is shrinking"),
    "circle": ("moves in a circle", "goes round", "is circling"),
    "sway": ("moves from side to side", "sways", "is swaying"),
    "hop": ("hops", "jumps up and down"),
    "swell": ("swells and gets thin again", "pulses"),
    "blink": ("blinks", "vanishes and comes back"),
    "stretch": ("stretches", "gets wide and narrow again"),
}
"""Movement -> phrases used in captions."""

ACTIONS: Mapping[str, str] = {
    "left": "move left",
    "right": "move right",
    "rise": "move up",
    "fall": "move down",
    **{name: name for name in ("grow", "shrink", "circle", "sway", "hop", "swell", "blink", "stretch")},
}
"""Movement -> the choice of a multiple-choice question."""

LABELS: Mapping[str, str] = {
    "left": "moving left",
    "right": "moving right",
    "rise": "rising",
    "fall": "falling",
    "grow": "growing",
    "shrink": "shrinking",
    "circle": "circling",
    "sway": "swaying",
}
"""Continuous movement -> name of the action class."""

WAYS: Mapping[str, str] = {"left": "left", "right": "right", "rise": "up", "fall": "down"}
"""Straight movement -> answer."""

CHOICES = 5
"""Number of choices of a multiple-choice question."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a scene.

    Args:
        kind: What it asks for: ``shape``, ``number``, ``colour``, ``place``, ``way`` or ``doing``.
        text: The question.
        answer: The answer, one word.
    """

    kind: str
    text: str
    answer: str


@dataclass(frozen=True, slots=True)
class Choice:
    """A multiple-choice question.

    Args:
        text: The question.
        choices: The `CHOICES` choices.
        correct: Index of the correct choice.
    """

    text: str
    choices: tuple[str, ...]
    correct: int


ASKED: Mapping[str, tuple[str, ...]] = {
    "shape": (
        "what is moving?",
        "what is moving {where}?",
        "which shape does not stand still?",
        "what {colour} thing is moving?",
        "what is the {colour} shape that moves?",
    ),
    "number": (
        "how many shapes are there?",
        "how many shapes can be seen {where}?",
        "how many things are in the picture?",
        "how many shapes are there with the {shape}?",
    ),
    "colour": (
        "what color is the {shape}?",
        "what is the color of the {shape}?",
        "what is the color of the shape that moves?",
        "which color does the moving {shape} have?",
        "what color is the {shape} {where}?",
    ),
    "place": (
        "where is the {shape}?",
        "where is the {colour} {shape}?",
        "where is the {colour} shape moving?",
        "where can the {shape} be seen?",
    ),
    "way": (
        "which way does the {shape} go?",
        "in which direction is the {colour} {shape} moving?",
        "where to does the {colour} shape move?",
        "which way is the {shape} moving {where}?",
    ),
    "doing": (
        "what is the {shape} doing?",
        "what is the {colour} {shape} doing?",
        "what is the {colour} shape doing {where}?",
        "what does one see the {shape} doing?",
    ),
}
"""Kind -> templates of the question."""


def question(scene: Scene, kind: str, rng: np.random.Generator) -> Question:
    """Return a question of `kind` about the moving shape in a scene with one movement."""
    text = pick(ASKED[kind], rng).format(
        shape=scene.thing.shape, colour=scene.thing.colour, where=pick(WHERE[scene.place], rng)
    )
    name = scene.movements[0].name
    answers = {
        "shape": scene.thing.shape,
        "number": NUMBERS[len(scene.still)],
        "colour": scene.thing.colour,
        "place": scene.place,
        "way": WAYS.get(name, ""),
        "doing": LABELS.get(name, ""),
    }
    return Question(kind, text, answers[kind])


def kinds(scene: Scene) -> tuple[str, ...]:
    """Return the kinds of open questions that a scene with one movement can answer."""
    movement = "way" if scene.movements[0].name in STRAIGHT else "doing"
    return ("shape", "number", "colour", "place", movement)


def repeated_action(scene: Scene, rng: np.random.Generator) -> Choice:
    """Return a question about the movement that the shape repeats N times; all movements are equally likely choices."""
    movement = scene.movements[0]
    text = f"What does the {_named(scene.thing, rng)} do {movement.times} times ?"
    return _choose(text, movement.name, [name for name in REPEATED if name != movement.name], rng)


def transition(scene: Scene, when: str, rng: np.random.Generator) -> Choice:
    """Return a question about the movement ``before`` or ``after`` the other of the shape's two movements.

    The movement that the question names is never a choice, so excluding it does not help.
    """
    first, second = (movement.name for movement in scene.movements)
    known, asked = (first, second) if when == "after" else (second, first)
    text = f"What does the {_named(scene.thing, rng)} do {when} {ACTIONS[known].replace('move', 'moving')} ?"
    return _choose(text, asked, [name for name in PHASES if name not in (known, asked)], rng)


def captions(scene: Scene, count: int, rng: np.random.Generator) -> tuple[str, ...]:
    """Describe a scene in `count` different sentences.

    The first sentence names shape, colour, movement and place. Others may omit the place and mention the static shapes.
    """
    found: dict[str, None] = {}
    while len(found) < count:
        found[_caption(scene, rng, complete=not found)] = None
    return tuple(found)


def _caption(scene: Scene, rng: np.random.Generator, *, complete: bool) -> str:
    colour, shape = scene.thing.colour, pick(OTHER_NAMES[scene.thing.shape], rng)
    does = " and then ".join(pick(DOES[movement.name], rng) for movement in scene.movements)
    where = pick(WHERE[scene.place], rng)
    form = rng.integers(3 if complete else 4)
    if form == 0:
        sentence = f"a {colour} {shape} {does} {where}"
    elif form == 1:
        sentence = f"{where} a {colour} {shape} {does}"
    elif form == 2:
        sentence = f"there is a {shape} {where} , it is {colour} and {does}"
    else:
        sentence = f"a {shape} in {colour} {does}"
    if scene.still and not complete and rng.random() < 0.5:
        sentence += " while " + " and ".join(f"a {each.colour} {each.shape}" for each in scene.still)
        sentence += " stands still" if len(scene.still) == 1 else " stand still"
    return sentence


def pick(values: Sequence[str], rng: np.random.Generator) -> str:
    """Return one of `values`."""
    return values[int(rng.integers(len(values)))]


def _named(thing: Thing, rng: np.random.Generator) -> str:
    return pick((thing.shape, f"{thing.colour} {thing.shape}", f"moving {thing.shape}"), rng)


def _choose(text: str, right: str, wrong: Sequence[str], rng: np.random.Generator) -> Choice:
    names = rng.permutation([right, *rng.permutation(wrong)[: CHOICES - 1]])
    return Choice(text, tuple(ACTIONS[name] for name in names), [*names].index(right))
