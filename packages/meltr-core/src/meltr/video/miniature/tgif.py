"""TGIF-QA's layout: tab-separated files with three kinds of questions, and GIFs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from meltr.files import write_text
from meltr.video.miniature.language import Choice, captions, kinds, question, repeated_action, transition
from meltr.video.miniature.layouts import DARK, ONE_MOVEMENT, REPETITIONS, TWO_PHASES, SampleLayout, Splits, numbered
from meltr.video.miniature.scenes import Scene

SPLITS = ("train", "test")

CHOICE_COLUMNS = ("gif_name", "question", "a1", "a2", "a3", "a4", "a5", "answer", "vid_id", "key")
FRAME_COLUMNS = ("gif_name", "question", "answer", "type", "vid_id", "key", "description")

TYPES = {"shape": 0, "number": 1, "colour": 2, "place": 3}
"""Kind of question -> column ``type``: object, number, colour, location."""

Rows = list[tuple[str, ...]]
Ask = Callable[[Scene, np.random.Generator], Rows]
"""Returns the columns between the name of the GIF and the last columns, one row per question."""


def actions(scene: Scene, rng: np.random.Generator) -> Rows:
    """Return a question about a repeated movement."""
    return [_choice(repeated_action(scene, rng))]


def transitions(scene: Scene, rng: np.random.Generator) -> Rows:
    """Return questions about the movement before and the movement after."""
    return [_choice(transition(scene, when, rng)) for when in ("before", "after")]


def frames(scene: Scene, rng: np.random.Generator) -> Rows:
    """Return questions about object, number, colour and place."""
    asked = [question(scene, kind, rng) for kind in kinds(scene) if kind in TYPES]
    return [(each.text.replace("?", " ?"), each.answer, str(TYPES[each.kind])) for each in asked]


def _choice(asked: Choice) -> tuple[str, ...]:
    return (asked.text, *asked.choices, str(asked.correct))


def annotate(
    folder: Path, splits: Splits, rng: np.random.Generator, *, word: str, columns: Sequence[str], ask: Ask
) -> dict[Path, Scene]:
    """Write ``Train_<word>_question.csv`` and ``Test_<word>_question.csv``.

    The columns ``vid_id key`` hold the name of the question and the number of the GIF, as in the official files.
    """
    lines = {split: ["\t".join(columns)] for split in splits}
    clips = {}
    count = 0
    for split, number, scene in numbered(splits):
        name = f"tumblr_miniature{number:04d}"
        clips[folder / "gifs" / f"{name}.gif"] = scene
        extra = captions(scene, 1, rng) if "description" in columns else ()
        for row in ask(scene, rng):
            count += 1
            lines[split].append("\t".join((name, *row, f"{word.upper()}{count}", str(number), *extra)))
    for split, content in lines.items():
        write_text(folder / f"{split.capitalize()}_{word}_question.csv", "\n".join(content) + "\n")
    return clips


ACTION = SampleLayout(REPETITIONS, SPLITS, partial(annotate, word="action", columns=CHOICE_COLUMNS, ask=actions), DARK)
TRANSITION = SampleLayout(
    TWO_PHASES, SPLITS, partial(annotate, word="transition", columns=CHOICE_COLUMNS, ask=transitions), DARK
)
FRAME = SampleLayout(ONE_MOVEMENT, SPLITS, partial(annotate, word="frameqa", columns=FRAME_COLUMNS, ask=frames))
