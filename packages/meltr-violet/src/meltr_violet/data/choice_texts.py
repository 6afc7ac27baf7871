"""Encode a multiple-choice question: one text for each choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from meltr.video.text.wordpiece import Tokenizer

ChoiceFormat = Literal["prompt", "plain", "released"]

PROMPT_WORDS = ("Options: Answer:",)
"""Words of the prompt itself, which come from neither the question nor the choices."""


def encode_choices(
    tokenizer: Tokenizer, question: str, choices: Sequence[str], *, style: ChoiceFormat = "prompt"
) -> Tensor:
    """Return the token ids of a question with each of its choices, (O, X).

    - ``plain``: question and choice (the original VIOLET).
    - ``prompt``: question, ``Options:`` and all choices, ``Answer:`` and the choice. A text that is too long loses the
      end of the question and options and keeps the answer, so that choices stay different.
    - ``released``: as in MELTR's code. It lacks a space before ``Options:`` and ``Answer:``, so WordPiece joins them to
      the word before. A text that is too long is cut at the end, where the answer is.

    Args:
        tokenizer: The tokenizer.
        question: The question.
        choices: O choices.
        style: Format of the text.
    """
    if style == "plain":
        return tokenizer.encode([f"{question} {choice}" for choice in choices])
    listed = " ".join(choices)
    if style == "released":
        return tokenizer.encode([f"{question}Options: {listed}Answer: {choice}" for choice in choices])
    before = tokenizer.pieces(f"{question} Options: {listed}")
    answers = [tokenizer.pieces(f"Answer: {choice}")[: tokenizer.length - 2] for choice in choices]
    return tokenizer.pack([before[: tokenizer.length - 2 - len(answer)] + answer for answer in answers])
