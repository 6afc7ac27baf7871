"""Rank of the correct candidate among all candidates, with defined handling of ties and NaN."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from meltr.errors import MeltrError

Ties = Literal["stable", "optimistic", "average", "pessimistic", "positions"]
"""How candidates with the same score as the correct one are ranked.

| value | the correct candidate ranks |
| --- | --- |
| ``stable`` | after those with the same score that precede it in the row, as in a stable descending sort |
| ``optimistic`` | before all of them |
| ``average`` | in the middle of them |
| ``pessimistic`` | after all of them |
| ``positions`` | at each of their positions: a row with n candidates of this score gives n ranks |

If all scores are equal (a collapsed model), ``optimistic`` gives perfect ranks, and ``stable`` gives ranks that follow
the order of the file. ``positions`` is the result of looking up the score in the sorted row, as public evaluation code
for 1k-A does.
"""

BLOCK = 2**22
"""Scores that are compared at once: the comparisons take a few megabytes, however many rows there are."""

Scores = npt.NDArray[np.floating]
Ranks = npt.NDArray[np.float64]


def ranks(scores: npt.ArrayLike, right: npt.ArrayLike, *, ties: Ties = "stable") -> Ranks:
    """Return the rank of the correct candidate in each row, 1 for the best.

    Args:
        scores: Shape (N, M): N rows of M candidates, the higher the better.
        right: Shape (N,): the index of the correct candidate.
        ties: See `Ties`.

    Returns:
        Shape (N,); with ``ties="positions"`` one rank per position, the ranks of a row adjacent.

    Raises:
        MeltrError: If a score is NaN.
        ValueError: If the shapes do not match, an index is out of range, or `ties` is unknown.
    """
    matrix = checked(scores)
    index = np.asarray(right)
    if index.shape != matrix.shape[:1] or not np.issubdtype(index.dtype, np.integer):
        raise ValueError(f"right has shape {index.shape} and type {index.dtype}, not {matrix.shape[:1]} integers")
    if index.size and not 0 <= index.min() <= index.max() < matrix.shape[1]:
        raise ValueError(f"right lies in {index.min()}..{index.max()}, but there are {matrix.shape[1]} candidates")
    if ties not in get_args(Ties):
        raise ValueError(f"ties={ties!r}: choose one of {', '.join(get_args(Ties))}")
    rows = max(1, BLOCK // matrix.shape[1])
    blocks = [slice(start, start + rows) for start in range(0, len(matrix), rows)]
    return np.concatenate([np.empty(0), *(_ranks(matrix[block], index[block], ties) for block in blocks)])


def _ranks(matrix: Scores, index: npt.NDArray[np.integer], ties: Ties) -> Ranks:
    """Return the ranks of a block of rows."""
    own = matrix[np.arange(len(matrix)), index][:, None]
    better = (matrix > own).sum(axis=1)
    equal = matrix == own
    others = equal.sum(axis=1) - 1
    if ties == "positions":
        spread = [np.arange(low, low + more + 1) for low, more in zip(better, others, strict=True)]
        return 1.0 + np.concatenate([np.empty(0), *spread])
    before = (equal & (np.arange(matrix.shape[1]) < index[:, None])).sum(axis=1)
    passed = {"stable": before, "optimistic": 0 * others, "average": others / 2, "pessimistic": others}
    found: Ranks = 1.0 + better + passed[ties]
    return found


def checked(scores: npt.ArrayLike) -> Scores:
    """Return `scores` as a matrix of floating-point numbers.

    Raises:
        MeltrError: If a score is NaN.
        ValueError: If it is not a matrix with at least one row and one column.
    """
    matrix = np.asarray(scores)
    if matrix.ndim != 2 or not matrix.size:
        raise ValueError(f"scores has shape {matrix.shape}, not (rows, candidates)")
    if not np.issubdtype(matrix.dtype, np.floating):
        matrix = matrix.astype(np.float64)
    if np.isnan(matrix.max()):
        missing = int(np.isnan(matrix).sum())
        raise MeltrError(
            f"{missing:,} of {matrix.size:,} scores are NaN, so the candidates cannot be ranked.",
            "The model has diverged: lower --lr, or evaluate in float32.",
        )
    return matrix
