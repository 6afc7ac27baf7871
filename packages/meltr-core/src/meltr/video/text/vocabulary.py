"""The vocabulary of a run: a given file, bert-base-uncased, or a sample's words; the run keeps a copy."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from meltr.context import RunContext
from meltr.files import write_text
from meltr.video import miniature
from meltr.video.corpus import Corpus
from meltr.video.text.wordpiece import cached_vocabulary, read_vocabulary, write_vocabulary

VOCABULARY = "vocabulary.txt"
"""File in the run folder with the vocabulary, so that a trained run needs no other file."""


def run_vocabulary(
    context: RunContext, corpus: Corpus, given: Path | None, *, own: bool = False, extra_words: Sequence[str] = ()
) -> Path:
    """Return the file of a run's vocabulary, and store a copy in the run folder for the trained run.

    Without a given file, synthetic samples and models trained from scratch (`own`) use the words of the data set.

    Args:
        context: The run.
        corpus: Its data set, before limits, which must not change the vocabulary.
        given: The file that the user gave, if any.
        own: True if the model is small and trained from scratch, so that it needs no published vocabulary.
        extra_words: Other words for a vocabulary of the data set's words.

    Raises:
        UserError: If there is no vocabulary, or it is not valid for this model.
    """
    stored = None if context.run_dir is None else context.run_dir / VOCABULARY
    if context.weights_follow and stored is not None and stored.is_file():
        return stored
    found = given
    if found is None:
        found = _own_words(corpus, extra_words) if own or context.spec.sample else cached_vocabulary()
    read_vocabulary(found)
    if stored is not None and context.rank == 0:
        write_text(stored, found.read_text(encoding="utf-8"))
    return found


def _own_words(corpus: Corpus, extra_words: Sequence[str]) -> Path:
    """Return a vocabulary of the words of `corpus`; it is written to the user's cache if it is missing."""
    words = sorted({*_words(corpus), *extra_words})
    digest = hashlib.sha256("\n".join(words).encode()).hexdigest()[:8]
    file = miniature.cache_folder() / "vocabularies" / f"{corpus.dataset}-{corpus.task}-{digest}.txt"
    if not file.exists():
        write_vocabulary(file, words)
    return file


def _words(corpus: Corpus) -> set[str]:
    items = [item for items in corpus.splits.values() for item in items]
    single = {text or "" for item in items for text in (item.question, item.transcript)}
    return single | {text for item in items for text in (*item.captions, *item.choices)}
