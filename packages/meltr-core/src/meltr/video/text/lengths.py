"""Texts that are longer than a model reads."""

from __future__ import annotations

from collections.abc import Sequence

from meltr.video.corpus import Corpus


def notes_on_long_texts(corpus: Corpus, length: int) -> list[str]:
    """Return a note if captions, or questions with their choices, are longer than `length` tokens.

    Args:
        corpus: The data set.
        length: Tokens that the model reads, [CLS] and [SEP] included.
    """
    items = [item for items in corpus.splits.values() for item in items]
    texts = [text for item in items for text in item.captions]
    texts += [" ".join([item.question, *item.choices]) for item in items if item.question is not None]
    return notes_on_cut(texts, length - 2)


def notes_on_cut(texts: Sequence[str], most: int, *, what: str = "text") -> list[str]:
    """Return a note that says how many texts are cut; only words are counted, so that there may be some more.

    Args:
        texts: The texts.
        most: Words that fit.
        what: What they are; ``<what>_length`` is the setting that says how many tokens fit.
    """
    long = sum(len(text.split()) > most for text in texts)
    if not long:
        return []
    return [f"{long:,} of {len(texts):,} {what}s have more than {most} words and are cut (--set {what}_length)"]
