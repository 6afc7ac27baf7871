"""Build a checked `Corpus` from a reader's examples: find their media, and note skipped examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from meltr.errors import UserError
from meltr.video.annotations.finding import existing, index_by_stem, match_stems, other_endings
from meltr.video.annotations.layout import DatasetLayout
from meltr.video.corpus import Corpus, Item

SHOWN = 5
"""Number of names shown from a longer list."""


@dataclass(frozen=True)
class Draft:
    """The content of the annotations, before the videos are looked up.

    Args:
        splits: ``train``, ``validation``, ``test`` -> examples in the order of the file.
        answers: As in `Corpus`.
        notes: As in `Corpus`.
        stems: Media key -> names that its file may have, if different from the key.
        paths: Media key -> its file, if the annotations give it; None: files are found by name.
    """

    splits: Mapping[str, tuple[Item, ...]]
    answers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    stems: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    paths: Mapping[str, Path] | None = None

    def media_names(self) -> list[str]:
        """Return the distinct media keys of the examples, in order."""
        return list(dict.fromkeys(item.media for items in self.splits.values() for item in items))


def find_media(draft: Draft, layout: DatasetLayout, root: Path) -> dict[str, Path]:
    """Return media key -> file, for the media that exist."""
    if draft.paths is not None:
        return existing(draft.paths)
    assert layout.media is not None
    return match_stems(draft.media_names(), index_by_stem(root, layout.media.folders), draft.stems)


def assemble(draft: Draft, layout: DatasetLayout, *, task: str, root: Path, allow_missing: bool) -> Corpus:
    """Return the corpus of a draft.

    Args:
        draft: The content of the annotations.
        layout: The layout of the data set.
        task: The task.
        root: The folder of the data set.
        allow_missing: Skip examples whose video is missing, instead of raising an error.

    Raises:
        UserError: If a split is empty, or videos are missing.
    """
    _check_not_empty(draft, layout, root)
    media = find_media(draft, layout, root)
    missing = tuple(key for key in draft.media_names() if key not in media)
    notes = list(draft.notes)
    splits = dict(draft.splits)
    if missing:
        if not allow_missing or not media:
            raise _missing_error(layout, root, missing, named=len(missing) + len(media))
        splits, left_out = _without(draft.splits, frozenset(missing))
        notes.append(f"{len(missing):,} of {len(missing) + len(media):,} videos are missing; skipped: {left_out}")
        if not splits.get("train"):
            raise UserError(
                f"{layout.dataset}: no training example is left, because none of their videos is in {root}.",
                layout.advice(root),
            )
    return Corpus(
        dataset=layout.dataset,
        task=task,
        splits=splits,
        media=media,
        answers=draft.answers,
        missing=missing,
        notes=tuple(notes),
    )


def _check_not_empty(draft: Draft, layout: DatasetLayout, root: Path) -> None:
    empty = [name for name in dict.fromkeys(["train", *draft.splits]) if not draft.splits.get(name)]
    if empty:
        raise UserError(
            f"{layout.dataset}: the annotations in {root} have no example for the split {' and '.join(empty)}.",
            layout.advice(root),
        )


def _missing_error(layout: DatasetLayout, root: Path, missing: Sequence[str], *, named: int) -> UserError:
    message = f"{layout.dataset}: {len(missing):,} of {named:,} videos that the annotations name are not in {root}: "
    lines = [*_elsewhere(layout, root, missing), layout.media_place(root)]
    if len(missing) < named:
        lines.append("Continue without them: --allow-missing (their examples are skipped, in the test split too).")
    lines.append("To run without any files: --sample.")
    return UserError(message + first(missing), "\n".join(lines))


def _elsewhere(layout: DatasetLayout, root: Path, missing: Sequence[str]) -> list[str]:
    """Return a line about files that are there under another ending."""
    sentence = "" if layout.media is None else other_endings(root, layout.media.folders, missing)
    return [sentence] if sentence else []


def _without(
    splits: Mapping[str, tuple[Item, ...]], missing: frozenset[str]
) -> tuple[dict[str, tuple[Item, ...]], str]:
    """Return the non-empty splits without examples of `missing` media, and a phrase about the skipped examples."""
    kept = {name: tuple(item for item in items if item.media not in missing) for name, items in splits.items()}
    phrases = []
    for name, items in splits.items():
        lost = len(items) - len(kept[name])
        if lost:
            gone = "" if kept[name] else ", so the split is dropped"
            phrases.append(f"{lost:,} of {len(items):,} examples of {name}{gone}")
    return {name: items for name, items in kept.items() if items}, "; ".join(phrases) + "."


def first(names: Sequence[str], count: int = SHOWN) -> str:
    """Return the first names of a list, followed by "..." if there are more."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def most_common_answers(items: Iterable[Item], limit: int | None = None) -> tuple[str, ...]:
    """Return the vocabulary of open-ended answers: the `limit` most frequent ones, in alphabetical order.

    Among equally frequent answers, those that come first in the file are taken. For the training questions of MSVD-QA
    this gives exactly the 1,000 answers of published prepared files, with the same indices.
    """
    counts = Counter(item.answer for item in items if item.answer is not None)
    return tuple(sorted(answer for answer, _ in counts.most_common(limit)))


def outside_note(splits: Mapping[str, Sequence[Item]], answers: Sequence[str]) -> tuple[str, ...]:
    """Return a note about questions whose answer is outside the vocabulary, if there are any."""
    known = frozenset(answers)
    phrases = []
    for name, items in splits.items():
        outside = sum(item.answer not in known for item in items)
        if outside:
            phrases.append(f"{outside:,} of {len(items):,} in {name}")
    if not phrases:
        return ()
    return (f"Answers outside the vocabulary of {len(answers):,}, kept and always wrong: {', '.join(phrases)}.",)


def unique_ids(items: Iterable[Item]) -> tuple[tuple[Item, ...], int]:
    """Return the items with unique ids (``x``, ``x#2``, ``x#3``), and the number of changed ids."""
    seen: Counter[str] = Counter()
    done = []
    for item in items:
        seen[item.id] += 1
        done.append(item if seen[item.id] == 1 else replace(item, id=f"{item.id}#{seen[item.id]}"))
    return tuple(done), len(done) - len(seen)


def with_unique_ids(splits: Mapping[str, Iterable[Item]]) -> tuple[dict[str, tuple[Item, ...]], tuple[str, ...]]:
    """Apply `unique_ids` to every split; return the splits and a note for each split with repeated ids."""
    done, notes = {}, []
    for name, items in splits.items():
        done[name], repeated = unique_ids(items)
        if repeated:
            notes.append(f"{repeated:,} examples of {name} repeat the id of another one; kept and numbered.")
    return done, tuple(notes)


def one_item_a_medium(items: Iterable[Item]) -> tuple[Item, ...]:
    """Merge items of the same medium and span into one with all their captions; the id is that of the first."""
    found: dict[tuple[str, tuple[float, float] | None], Item] = {}
    for item in items:
        known = found.get((item.media, item.span))
        captions = item.captions if known is None else known.captions + item.captions
        found[item.media, item.span] = replace(item if known is None else known, captions=captions)
    return tuple(found.values())
