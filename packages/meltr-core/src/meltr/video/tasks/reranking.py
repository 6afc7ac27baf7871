"""Re-ranking: fast scores for all texts and videos, and slower scores that re-rank the best ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.floating]
Chosen = npt.NDArray[np.bool_]


class Scores(NamedTuple):
    """How well texts and videos fit; higher is better.

    Args:
        of_texts: Scores to find the video of a text, (texts, videos).
        of_videos: Scores to find the text of a video, (texts, videos); a different matrix only after re-ranking.
    """

    of_texts: Matrix
    of_videos: Matrix


def reranked(fast: Matrix, slow: Callable[[Chosen], Matrix], count: int) -> Scores:
    """Return scores in which the best of each row, and of each column, are re-ranked by slower scores.

    Args:
        fast: Scores of all pairs, (texts, videos).
        slow: Called once with the selected pairs, (texts, videos); returns a matrix with their scores and any other
            values.
        count: Number of videos per text, and of texts per video, that are re-ranked.
    """
    ahead = (best_of(fast, count), best_of(fast.T, count).T)
    better = slow(ahead[0] | ahead[1])
    return Scores(*(put_ahead(fast, better, first) for first in ahead))


def best_of(scores: Matrix, count: int) -> Chosen:
    """Return which entries are among the `count` best of their row; in a tie, the first."""
    chosen = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(chosen, np.argsort(-scores, axis=1, kind="stable")[:, :count], True, axis=1)
    return chosen


def put_ahead(scores: Matrix, better: Matrix, chosen: Chosen) -> Matrix:
    """Return `scores` with the `chosen` entries replaced by those of `better`, moved above all others."""
    lift = scores.max() - better[chosen].min() + 1
    return np.where(chosen, better + lift, scores)
