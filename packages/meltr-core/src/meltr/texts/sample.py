"""A synthetic sample: sentences of three classes that can be told by one adjective and its negation."""

from __future__ import annotations

import random
from dataclasses import replace

from meltr.texts.corpus import TextCorpus, TextItem

SIZES = {"train": 480, "validation": 96, "test": 192}
"""Split -> number of texts."""

_GOOD = ("great", "lovely", "fine", "brilliant")
_BAD = ("dull", "awful", "weak", "boring")
_PLAIN = ("long", "new", "short", "old")
_THINGS = ("film", "book", "song", "play", "story", "meal")
_TIMES = ("today", "last night", "again", "in the end", "at noon")


def sample(seed: int = 0, *, targets: bool = False) -> TextCorpus:
    """Return the sample; the same seed gives the same texts.

    ``not great`` is bad and ``not dull`` is good, so that a class needs two words.

    Args:
        seed: Of the texts.
        targets: Each text has a target, such as ``a bad film``, in place of its class.
    """
    splits = {split: tuple(_sentence(seed, split, number) for number in range(count)) for split, count in SIZES.items()}
    if not targets:
        return TextCorpus(splits, ("bad", "good", "neutral"))
    short = {
        split: tuple(replace(item, label="", target=f"a {item.label} {item.columns['thing']}") for item in items)
        for split, items in splits.items()
    }
    return TextCorpus(short, ())


def _sentence(seed: int, split: str, number: int) -> TextItem:
    rng = random.Random(f"{seed}:{split}:{number}")
    label = ("bad", "good", "neutral")[number % 3]
    negated = label != "neutral" and rng.random() < 0.3
    words = {"neutral": _PLAIN, "good": _BAD if negated else _GOOD, "bad": _GOOD if negated else _BAD}[label]
    thing = rng.choice(_THINGS)
    text = f"the {thing} was {'not ' if negated else ''}{rng.choice(words)} {rng.choice(_TIMES)}"
    return TextItem(text, label, f"{split}:{number}", {"thing": thing})
