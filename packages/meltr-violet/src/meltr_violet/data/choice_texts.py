"""A question with each of its choices as one text for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from meltr.video.text.wordpiece import Tokenizer

ChoiceFormat = Literal["prompt", "plain", "released"]

PROMPT_WORDS = ("Options: Answer:",)
"""Words of a prompt that are in no question and no choice."""


def encode_choices(
    tokenizer: Tokenizer, question: str, choices: Sequence[str], *, style: ChoiceFormat = "prompt"
) -> Tensor:
    """Return token ids of a question with each of its choices, (O, X).

    ``plain``: question and choice (the original VIOLET). ``prompt``: question, ``Options:`` and all choices,
    ``Answer:`` and the choice; what is too long loses the end of question and options, never the answer, so that
    choices stay different. ``released`` (MELTR's code): the same without a space before ``Options:`` and
    ``Answer:``, which WordPiece glues to the word before, and cut at the end, where the answer is.

    Args:
        tokenizer: Makes the ids.
        question: The question.
        choices: O choices.
        style: How they are put together.
    """
    if style == "plain":
        return tokenizer.encode([f"{question} {choice}" for choice in choices])
    listed = " ".join(choices)
    if style == "released":
        return tokenizer.encode([f"{question}Options: {listed}Answer: {choice}" for choice in choices])
    before = tokenizer.pieces(f"{question} Options: {listed}")
    answers = [tokenizer.pieces(f"Answer: {choice}")[: tokenizer.length - 2] for choice in choices]
    return tokenizer.pack([before[: tokenizer.length - 2 - len(answer)] + answer for answer in answers])
