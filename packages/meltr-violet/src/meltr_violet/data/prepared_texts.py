"""Read texts from VIOLET's prepared files: questions with an index as answer, questions with choices, and captions.

The formats are those of the public repositories tsujuifu/pytorch_violet (``txt_*.json``: the splits ``train``, ``val``
and ``test``) and mlvlab/MELTR (captions as ``{"sentences": [...]}``, one file per split). This module does not import
torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from meltr.video.annotations.assembly import Draft, one_item_a_medium, outside_note
from meltr.video.annotations.parsing import malformed, read_json, records, text_of
from meltr.video.corpus import Item

OUTSIDE = "[outside the vocabulary]"
"""Answer of a question whose prepared answer is -1: the file does not contain the answer."""

SPLITS = {"train": "train", "validation": "val", "test": "test"}
"""Split -> name of the split in the files. ``val`` may be absent or empty."""

Make = Callable[[Mapping[str, Any], int, str], Item]
"""Make an example of a record, its index in the split, and its location for error messages."""


def questions(path: Path) -> Draft:
    """Read open-ended questions: ``{"video", "question", "answer"}``, where the answer is an index into ``vocab``.

    Without ``vocab``, the answers are named by their index.

    Raises:
        UserError: If the file is malformed, or an answer is neither in the vocabulary nor -1.
    """
    content = _object(path)
    answers, notes = _vocabulary(path, content)

    def make(record: Mapping[str, Any], number: int, where: str) -> Item:
        index = _index(record, len(answers), where, least=-1)
        return Item(
            media=text_of(record, "video", where),
            id=str(number),
            question=text_of(record, "question", where),
            answer=answers[index] if index >= 0 else OUTSIDE,
        )

    splits = _splits(path, content, make)
    return Draft(splits, answers, notes + outside_note(splits, answers))


def choices(path: Path) -> Draft:
    """Read multiple-choice questions: ``{"video", "question", "option_0", "option_1", ..., "answer"}``.

    Raises:
        UserError: If the file is malformed, or an answer is not the index of a choice.
    """

    def make(record: Mapping[str, Any], number: int, where: str) -> Item:
        names = list(takewhile(record.__contains__, (f"option_{each}" for each in count())))
        if len(names) < 2:
            raise malformed(where, f"no option_0 and option_1; it has {', '.join(map(str, list(record)[:12]))}.")
        options = tuple(_option(record, name, where) for name in names)
        correct = _index(record, len(options), where)
        return Item(
            media=text_of(record, "video", where),
            id=str(number),
            question=text_of(record, "question", where),
            answer=options[correct],
            choices=options,
            correct=correct,
        )

    return Draft(_splits(path, _object(path), make))


def captions(train: Path, test: Path) -> Draft:
    """Read videos with their captions.

    A file is ``{"sentences": [{"video_id", "caption"}, ...]}``, or ``{"train": [{"video", "caption"}, ...], ...}``. The
    two arguments may be one file of the second form; its ``val`` is then the validation split.

    Raises:
        UserError: If a file is malformed.
    """

    def make(record: Mapping[str, Any], number: int, where: str) -> Item:
        video = text_of(record, "video_id" if "video_id" in record else "video", where)
        return Item(media=video, id=video, captions=(text_of(record, "caption", where),))

    if train == test:
        splits = _splits(train, _object(train), make)
    else:
        splits = {split: _of_split(path, split, make) for split, path in (("train", train), ("test", test))}
    return Draft({split: one_item_a_medium(items) for split, items in splits.items()})


def _object(path: Path) -> Mapping[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise malformed(path, f"{type(content).__name__} instead of an object with the splits.")
    return content


def _of_split(path: Path, split: str, make: Make) -> tuple[Item, ...]:
    content = _object(path)
    name = "sentences" if "sentences" in content else SPLITS[split]
    return _items(path, content, name, make)


def _splits(path: Path, content: Mapping[str, Any], make: Make) -> dict[str, tuple[Item, ...]]:
    splits = {
        split: _items(path, content, name, make)
        for split, name in SPLITS.items()
        if split != "validation" or name in content
    }
    return {split: items for split, items in splits.items() if items or split != "validation"}


def _items(path: Path, content: Mapping[str, Any], name: str, make: Make) -> tuple[Item, ...]:
    if name not in content:
        raise malformed(path, f"no list {name!r}; it has {', '.join(map(str, list(content)[:12])) or 'nothing'}.")
    found = records(content[name], f"{path}, {name}")
    return tuple(make(record, number, where) for number, (where, record) in enumerate(found))


def _vocabulary(path: Path, content: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the answers, and a note if the file does not name them."""
    words = content.get("vocab")
    if words is None:
        return _numbered(path, content)
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise malformed(f"{path}, vocab", f"{type(words).__name__} instead of a list of answers.")
    if len(set(words)) < len(words):
        twice = next(word for number, word in enumerate(words) if word in words[:number])
        raise malformed(f"{path}, vocab", f"{twice!r:.60} occurs twice.")
    return tuple(words), ()


def _numbered(path: Path, content: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    largest = -1
    for name in SPLITS.values():
        for where, record in records(content.get(name, []), f"{path}, {name}"):
            largest = max(largest, _index(record, None, where, least=-1))
    answers = tuple(str(index) for index in range(largest + 1))
    return answers, (f"{path.name} has no vocab: its {len(answers):,} answers are named by their index.",)


def _index(record: Mapping[str, Any], size: int | None, where: str, *, least: int = 0) -> int:
    """Return the field ``answer``, a whole number of at least `least` and below `size`."""
    value = record.get("answer")
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (size is not None and value >= size):
        most = "" if size is None else f" to {size - 1:,}"
        raise malformed(where, f"'answer' is {value!r:.60}, not a whole number from {least}{most}.")
    return value


def _option(record: Mapping[str, Any], name: str, where: str) -> str:
    """Return a choice, which may be empty."""
    value = record[name]
    if not isinstance(value, (str, int)):
        raise malformed(where, f"{name!r} is {value!r:.60}, not text.")
    return str(value).strip()
