"""The user's own data: ``manifest.jsonl``, one JSON object per line, for every task.

| key | meaning |
| --- | --- |
| ``split`` | ``train``, ``validation`` (or ``val``, ``valid``, ``dev``), ``test`` |
| ``video`` or ``image`` | path of the file, relative to the manifest |
| ``features`` | instead: path of a ``.npy`` file, for backbones that read features (frames, width) |
| ``start``, ``end`` | the part of the video, in seconds, for backbones that read features |
| ``captions`` | list of sentences, or one (retrieval, captioning) |
| ``question``, ``answer`` | text (qa); open-ended: the training answers are the vocabulary |
| ``choices`` | list of answers that includes ``answer`` (multiple-choice qa); in all lines or none, of equal length |
| ``label`` | name of the class (action, classification) |
| ``score`` | sentiment, from -3 to 3 |
| ``transcript`` | the spoken words (captioning, sentiment) |
| ``id`` | name of the example; default: the number of its line |

A line may hold more than its task needs. Question, answer and choices are always checked, but only items of the task qa
keep them. In retrieval and captioning, lines with the same file, part and split form one item. Without lines for
``validation``, a part of the training items is set aside. Without lines for ``test``, there is no test result.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from meltr.errors import UserError, did_you_mean
from meltr.video.annotations.assembly import Draft, first, most_common_answers, one_item_a_medium, outside_note
from meltr.video.annotations.layout import AnnotationFile, DatasetLayout
from meltr.video.annotations.parsing import malformed, number_of, read_json_lines
from meltr.video.corpus import STRONGEST, Item

SPLITS = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "test": "test",
}
"""Value of ``split`` in a line -> split."""

MEDIA = ("video", "image", "features")
"""Keys that name a file."""

KEYS = (
    *("split", *MEDIA, "start", "end", "captions", "question", "answer", "choices", "label"),
    *("score", "transcript", "id"),
)
NEEDS = {
    "retrieval": ("captions",),
    "qa": ("question", "answer"),
    "action": ("label",),
    "classification": ("label",),
    "captioning": ("captions",),
    "sentiment": ("score",),
}
"""Task -> keys that every line must have."""

LAYOUTS = (
    DatasetLayout(
        dataset="manifest",
        summary="Your own videos or images: one JSON line each, with captions, questions, labels or scores.",
        tasks=tuple(NEEDS),
        files=(
            AnnotationFile(
                "manifest",
                ("manifest.jsonl",),
                'one JSON object per line: "split" (train, validation, test), "video" or "image" (path relative to it)'
                ', and "captions", "question" + "answer" (+ "choices"), "label", or "score" (+ "transcript")',
            ),
        ),
        media=None,
    ),
)


def draft(layout: DatasetLayout, task: str, files: Mapping[str, Path]) -> Draft:
    """Return the items of the manifest.

    Raises:
        UserError: If a line is malformed, lacks a key that the task needs, or repeats an id; the message names the
            line.
    """
    path = files["manifest"]
    read: dict[str, list[tuple[int, Item]]] = {}
    for line, record in read_json_lines(path):
        split, item = _item(record, task, where=f"{path}, line {line}", line=line)
        read.setdefault(split, []).append((line, item))
    _check_ids(read, path)
    lines = [pair for each in read.values() for pair in each]
    if task == "qa":
        _check_choices(lines, path)
    splits = {
        split: tuple(item for _, item in read[split]) for split in dict.fromkeys(SPLITS.values()) if split in read
    }
    if task in ("retrieval", "captioning"):
        splits = {split: one_item_a_medium(items) for split, items in splits.items()}
    answers, notes = _vocabulary(splits, task, path)
    names = dict.fromkeys(item.media for items in splits.values() for item in items)
    return Draft(splits, answers, notes + _shared_note(splits), paths={name: path.parent / name for name in names})


def _item(record: Mapping[str, Any], task: str, *, where: str, line: int) -> tuple[str, Item]:
    unknown = [key for key in record if key not in KEYS]
    if unknown:
        raise malformed(where, f"unknown key {unknown[0]!r}.", did_you_mean(unknown[0], KEYS))
    split = record.get("split")
    if not isinstance(split, str) or split not in SPLITS:
        problem = f"unknown split {split!r}." if "split" in record else "no 'split'."
        raise malformed(where, problem, did_you_mean(str(split), SPLITS))
    absent = [key for key in NEEDS[task] if key not in record]
    if absent:
        raise malformed(
            where, f"no {absent[0]!r}.", f"Task {task!r} needs {' and '.join(map(repr, NEEDS[task]))} in every line."
        )
    choices = _texts(record, "choices", where)
    answer = _text(record, "answer", where)
    item = Item(
        media=_media(record, where),
        id=_text(record, "id", where) or str(line),
        captions=_texts(record, "captions", where),
        question=_text(record, "question", where),
        answer=answer,
        choices=choices,
        correct=_correct(choices, answer, where),
        label=_text(record, "label", where),
        transcript=_text(record, "transcript", where),
        span=_span(record, where),
        score=number_of(record, "score", where, low=-STRONGEST, high=STRONGEST) if "score" in record else None,
    )
    if task != "qa":  # Otherwise another task would use them as its text and class.
        item = replace(item, question=None, answer=None, choices=(), correct=None)
    return SPLITS[split], item


def _media(record: Mapping[str, Any], where: str) -> str:
    given = [key for key in MEDIA if key in record]
    if len(given) != 1:
        found = f"both {given[0]!r} and {given[1]!r}" if given else "neither 'video' nor 'image'"
        raise malformed(where, f"{found}.", "Give one of them: a path relative to the manifest.")
    name = _text(record, given[0], where)
    assert name is not None
    return posixpath.normpath(name)


def _span(record: Mapping[str, Any], where: str) -> tuple[float, float] | None:
    """Return the part of the video to use; None: all of it."""
    if "start" not in record and "end" not in record:
        return None
    start, end = (number_of(record, name, where, low=0) for name in ("start", "end"))
    if end <= start:
        raise malformed(where, f"the part from {start:g} to {end:g} seconds ends before it starts.", "Give seconds.")
    return start, end


def _text(record: Mapping[str, Any], key: str, where: str) -> str | None:
    """Return a key's text, stripped; None if the key is absent; UserError if the value is not text."""
    if key not in record:
        return None
    value = record[key]
    if not isinstance(value, str) or not value.strip():
        raise malformed(where, f"{key!r} is {value!r:.60}, not text.", f"Give {key!r} as text in quotes.")
    return value.strip()


def _texts(record: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    if key not in record:
        return ()
    value = [record[key]] if isinstance(record[key], str) and key == "captions" else record[key]
    if not isinstance(value, list) or not value:
        raise malformed(where, f"{key!r} is {value!r:.60}, not a list of texts.", f"Give {key!r} as a list of texts.")
    return tuple(str(_text({key: each}, key, where)) for each in value)


def _correct(choices: tuple[str, ...], answer: str | None, where: str) -> int | None:
    if not choices:
        return None
    if answer not in choices:
        found = "no 'answer'" if answer is None else f"the answer {answer!r:.60} is not among the choices"
        raise malformed(where, f"{found}.", f"It must be one of: {', '.join(choices)}.")
    if len(set(choices)) < len(choices):
        raise malformed(where, f"a choice is repeated: {', '.join(choices)}.", "Make the choices different.")
    return choices.index(answer)


def _check_ids(read: Mapping[str, Iterable[tuple[int, Item]]], path: Path) -> None:
    for split, pairs in read.items():
        seen: dict[str, int] = {}
        for line, item in pairs:
            if item.id in seen:
                raise malformed(
                    f"{path}, line {line}",
                    f"id {item.id!r} already occurs in line {seen[item.id]} (split {split}).",
                    "Ids must be unique in a split; without 'id', the id is the number of the line.",
                )
            seen[item.id] = line


def _check_choices(lines: Iterable[tuple[int, Item]], path: Path) -> None:
    """Check that all questions have the same number of choices, or that none has choices."""
    expected: int | None = None
    for line, item in lines:
        if expected is None:
            expected = len(item.choices)
        if len(item.choices) != expected:
            raise malformed(
                f"{path}, line {line}",
                f"{len(item.choices)} choices, but {expected} in the lines before.",
                "Give choices in all lines or in none, with the same number in each.",
            )


def _vocabulary(
    splits: Mapping[str, tuple[Item, ...]], task: str, path: Path
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the answers or classes of the training split, and notes."""
    train = splits.get("train", ())
    if task == "qa" and not any(item.choices for item in train):
        answers = most_common_answers(train)
        return answers, outside_note(splits, answers)
    if "label" not in NEEDS[task] or not train:
        return (), ()
    classes = tuple(sorted({str(item.label) for item in train}))
    for split, items in splits.items():
        unknown = sorted({str(item.label) for item in items} - set(classes))
        if unknown:
            raise UserError(
                f"{path}: {len(unknown)} classes of {split} are not in train: {first(unknown)}",
                f"Classes of train: {first(classes, 20)}",
            )
    return classes, ()


def _shared_note(splits: Mapping[str, tuple[Item, ...]]) -> tuple[str, ...]:
    """Return a note about files that occur both in training and in another split."""
    train = {item.media for item in splits.get("train", ())}
    shared = {item.media for split, items in splits.items() if split != "train" for item in items} & train
    if not shared:
        return ()
    return (f"{len(shared):,} files of train also occur in validation or test: {first(sorted(shared))}",)
