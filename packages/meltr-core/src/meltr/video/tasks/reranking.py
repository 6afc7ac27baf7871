"""Two matrices of scores: a fast one for all texts and videos, and a slow one that orders the best of each anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.floating]
Chosen = npt.NDArray[np.bool_]


class Scores(NamedTuple):
    """How well texts and videos fit, the higher the better.

    Args:
        of_texts: To find the video of a text, (texts, videos).
        of_videos: To find the text of a video, (texts, videos); another matrix only if the best were ordered anew.
    """

    of_texts: Matrix
    of_videos: Matrix


def reranked(fast: Matrix, slow: Callable[[Chosen], Matrix], count: int) -> Scores:
    """Return scores in which the best of each row, and of each column, are ordered by slower scores.

    Args:
        fast: Scores of all pairs, (texts, videos).
        slow: Called once with which pairs are wanted, (texts, videos); returns their scores, and anything elsewhere.
        count: How many videos of each text, and texts of each video, are ordered anew.
    """
    ahead = (best_of(fast, count), best_of(fast.T, count).T)
    better = slow(ahead[0] | ahead[1])
    return Scores(*(put_ahead(fast, better, first) for first in ahead))


def best_of(scores: Matrix, count: int) -> Chosen:
    """Return which are among the `count` best of their row; of equals, the first."""
    chosen = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(chosen, np.argsort(-scores, axis=1, kind="stable")[:, :count], True, axis=1)
    return chosen


def put_ahead(scores: Matrix, better: Matrix, chosen: Chosen) -> Matrix:
    """Return `scores`, but `better`, moved above all of them, where `chosen`."""
    lift = scores.max() - better[chosen].min() + 1
    return np.where(chosen, better + lift, scores)
