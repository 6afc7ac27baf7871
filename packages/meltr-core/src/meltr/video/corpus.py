"""Result of every reader of annotations: examples that name their media, grouped in splits. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

STRONGEST = 3.0
"""Sentiments range from minus this value to this value."""


@dataclass(frozen=True, slots=True)
class Item:
    """One example. Which fields are set depends on the task.

    Args:
        media: Key of its video or image in a `meltr.video.frames.source.FrameSource`.
        id: Name of the example in its file (a question number, a line); unique in its split.
        captions: Sentences that describe it (retrieval, captioning). Retrieval readers return one item per medium; the
            training set may hold several captions of it.
        question: The question (qa).
        answer: The right answer as text (qa). If it is not in `Corpus.answers`, no model can get it right.
        choices: The choices (multiple-choice qa); `correct` is the index of the right one. Empty: open-ended.
        correct: Index of the right choice; None if there are no choices.
        label: Name of the class (action).
        transcript: The spoken words (captioning, sentiment); None: none, or unknown.
        span: Its part of the medium, start and end in seconds; None: all of it.
        score: Sentiment, from -3 to 3.
    """

    media: str
    id: str
    captions: tuple[str, ...] = ()
    question: str | None = None
    answer: str | None = None
    choices: tuple[str, ...] = ()
    correct: int | None = None
    label: str | None = None
    transcript: str | None = None
    span: tuple[float, float] | None = None
    score: float | None = None


@dataclass(frozen=True)
class Corpus:
    """A data set as read for one task.

    Args:
        dataset: Its name.
        task: The task.
        splits: ``train``, ``validation``, ``test`` -> its examples, in the order of the file; only the splits that the
            data set has.
        media: Key -> file of every video or image that exists.
        answers: Open-ended qa: the closed vocabulary of answers; action: the class names. The index is the class.
            Empty for retrieval and multiple choice.
        missing: Keys in the annotations that have no file, with ``allow_missing``; their examples are not in `splits`.
        notes: Lines to show to the user (what was skipped, and why).
    """

    dataset: str
    task: str
    splits: Mapping[str, tuple[Item, ...]]
    media: Mapping[str, Path]
    answers: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())
