"""The training caption that is most similar to all others: the output of a captioner that never looks at the video."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

ORDERS = 4
"""Largest n of the n-grams, as in CIDEr."""

_Gram = tuple[str, ...]
_Vectors = list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]]
"""Indices of a caption's n-grams and their weights as a unit vector, for each order."""


def typical_caption(videos: Sequence[Sequence[str]]) -> str:
    """Return the caption with the highest mean similarity to the captions of all videos.

    Similarity is CIDEr without clipping and without the length penalty (Vedantam et al., CVPR 2015, eq. 2 and 3): the
    cosine of n-gram counts times log(videos / videos with this n-gram), averaged over n = 1 to 4. It is linear in the
    other caption, so one pass covers all pairs: the mean of the unit vectors replaces all other captions. Every video
    has the same weight, regardless of its number of captions.

    Args:
        videos: The captions of each training video. Words are separated by white space.

    Returns:
        The caption; in a tie, the first.

    Raises:
        ValueError: If there is no caption with a word in it.
    """
    known = [[" ".join(text.split()) for text in many if text.strip()] for many in videos]
    known = [many for many in known if many]
    if not known:
        raise ValueError("there is no caption with a word in it")
    number, weight = _inverse_frequencies(known)
    units = {
        text: _unit_vectors(text, number, weight) for text in dict.fromkeys(text for many in known for text in many)
    }
    mean = np.zeros(len(number))
    for many in known:
        for text in many:
            for grams, values in units[text]:
                mean[grams] += values / len(many)
    return max(units, key=lambda text: sum(float(values @ mean[grams]) for grams, values in units[text]))


def _inverse_frequencies(videos: Sequence[Sequence[str]]) -> tuple[dict[_Gram, int], npt.NDArray[np.float64]]:
    """Return the index of each n-gram, and log(videos / videos with this n-gram) by index."""
    frequency: Counter[_Gram] = Counter()
    for many in videos:
        frequency.update({gram for text in many for gram in _grams(text)})
    number = {gram: place for place, gram in enumerate(frequency)}
    return number, np.log(len(videos) / np.fromiter(frequency.values(), dtype=np.float64, count=len(frequency)))


def _unit_vectors(text: str, number: dict[_Gram, int], weight: npt.NDArray[np.float64]) -> _Vectors:
    counts: defaultdict[int, Counter[int]] = defaultdict(Counter)
    for gram in _grams(text):
        counts[len(gram)][number[gram]] += 1
    found: _Vectors = []
    for each in counts.values():
        grams = np.fromiter(each, dtype=np.int64, count=len(each))
        values = np.fromiter(each.values(), dtype=np.float64, count=len(each)) * weight[grams]
        found.append((grams, values / (np.linalg.norm(values) or 1.0)))
    return found


def _grams(text: str) -> list[_Gram]:
    words = text.split()
    return [
        tuple(words[start : start + order])
        for order in range(1, min(ORDERS, len(words)) + 1)
        for start in range(len(words) - order + 1)
    ]
