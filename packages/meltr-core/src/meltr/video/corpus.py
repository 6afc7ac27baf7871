"""What every reader of annotations returns: examples that name their media, grouped in splits. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

STRONGEST = 3.0
"""Sentiments lie between its negative and itself."""


@dataclass(frozen=True, slots=True)
class Item:
    """One example. Which fields are set depends on the task.

    Args:
        media: Key of its video or image: what a `meltr.video.frames.source.FrameSource` is asked for.
        id: Name of the example in its file (a question number, a line); unique in its split.
        captions: Sentences that describe it (retrieval, captioning). Retrieval readers return an item a medium; the
            training set may hold several captions of it.
        question: The question (qa).
        answer: The right answer as text (qa). It may be outside `Corpus.answers`: then no model can get it right.
        choices: What may be chosen (multiple-choice qa); `correct` is the index of the right one. Empty: open-ended.
        correct: Index of the right choice; None if there are no choices.
        label: Name of the class (action).
        transcript: What is said in it (captioning, sentiment); None: nothing, or unknown.
        span: Its part of the medium, start and end in seconds; None: all of it.
        score: How positive it is, from -3 to 3 (sentiment).
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
        splits: ``train``, ``validation``, ``test`` -> its examples, in the order of the file. A split that the data set
            does not have is left out.
        media: Key -> file of every video or image that is there.
        answers: Open-ended qa: the closed vocabulary of answers; action: the class names. The index is the class.
            Empty for retrieval and multiple choice.
        missing: Keys that the annotations name but for which there is no file, with ``allow_missing``; the examples are
            left out of `splits`.
        notes: Lines worth showing the user (what was left out, and why).
    """

    dataset: str
    task: str
    splits: Mapping[str, tuple[Item, ...]]
    media: Mapping[str, Path]
    answers: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())
