"""Texts of VIOLET's prepared files: questions with an index as answer, with choices, and captions. Imports no torch.

The forms are those of the public repositories tsujuifu/pytorch_violet (``txt_*.json``: the splits ``train``, ``val``
and ``test``) and mlvlab/MELTR (captions as ``{"sentences": [...]}``, a file for each split).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

from meltr.data.annotations.assembly import Draft, one_item_a_medium, outside_note
from meltr.data.annotations.parsing import malformed, read_json, records, text_of
from meltr.data.corpus import Item

OUTSIDE = "[outside the vocabulary]"
"""Answer of a question whose prepared answer is -1: the file does not say which it is."""

SPLITS = {"train": "train", "validation": "val", "test": "test"}
"""Split -> its name in the files. ``val`` may be absent or empty."""


def questions(path: Path) -> Draft:
    """Return open-ended questions: ``{"video", "question", "answer"}``, with the index of the answer in ``vocab``.

    Without ``vocab`` the answers are called by their index.

    Raises:
        UserError: If the file is malformed, or an answer is neither in the vocabulary nor -1.
    """
    content = _splits(path)
    answers, notes = _vocabulary(path, content)

    def item(record: Mapping[str, Any], number: int, where: str) -> Item:
        index = _index(record, len(answers), where, least=-1)
        return Item(
            media=text_of(record, "video", where),
            id=str(number),
            question=text_of(record, "question", where),
            answer=answers[index] if index >= 0 else OUTSIDE,
        )

    splits = _items(path, content, item)
    return Draft(splits, answers, notes + outside_note(splits, answers))


def choices(path: Path) -> Draft:
    """Return multiple-choice questions: ``{"video", "question", "option_0", ..., "answer"}``.

    Raises:
        UserError: If the file is malformed, or an answer is no number of a choice.
    """

    def item(record: Mapping[str, Any], number: int, where: str) -> Item:
        names = [name for index in count() if (name := f"option_{index}") in record or index < 2] if False else []
        return Item(media="", id=str(number), choices=tuple(names))

    return Draft(_items(path, _splits(path), item))


def captions(train: Path, test: Path) -> Draft:
    """Return videos with their captions.

    A file is ``{"sentences": [{"video_id", "caption"}, ...]}``, or ``{"train": [{"video", "caption"}, ...], ...}``; the
    two may be one file of the latter form, which then says what the validation split is.

    Raises:
        UserError: If a file is malformed.
    """
    files = {"train": train, "test": test} if train != test else dict.fromkeys(SPLITS, train)
    splits = {split: _captions(path, split) for split, path in files.items()}
    return Draft({split: items for split, items in splits.items() if items or split != "validation"})
