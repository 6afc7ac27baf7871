"""Notes about texts that are longer than the model's input."""

from __future__ import annotations

from collections.abc import Sequence

from meltr.video.corpus import Corpus


def notes_on_long_texts(corpus: Corpus, length: int) -> list[str]:
    """Return a note if captions, or questions with their choices, exceed `length` tokens.

    Args:
        corpus: The data set.
        length: Tokens that the model reads, [CLS] and [SEP] included.
    """
    items = [item for items in corpus.splits.values() for item in items]
    texts = [text for item in items for text in item.captions]
    texts += [" ".join([item.question, *item.choices]) for item in items if item.question is not None]
    return notes_on_cut(texts, length - 2)


def notes_on_cut(texts: Sequence[str], most: int, *, what: str = "text") -> list[str]:
    """Return a note with the number of truncated texts; it counts words, so the true number may be higher.

    Args:
        texts: The texts.
        most: Number of words that fit.
        what: Name of the texts; ``<what>_length`` is the setting for the number of tokens that fit.
    """
    long = sum(len(text.split()) > most for text in texts)
    if not long:
        return []
    return [f"{long:,} of {len(texts):,} {what}s have more than {most} words and are truncated (--set {what}_length)"]
