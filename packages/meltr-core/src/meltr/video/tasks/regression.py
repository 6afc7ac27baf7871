"""Metrics of sentiment in [-3, 3] (CMU-MOSI, CMU-MOSEI): error, correlation, and accuracy of sign and grade.

Papers define "binary accuracy" in two ways. Both are computed, each with its F1:

| metric | clips | positive is | used by |
| --- | --- | --- | --- |
| ``ba``, ``f1`` | those whose true value is not 0 | above 0 | MulT, MAG-BERT and most later papers |
| ``ba_nonneg``, ``f1_nonneg`` | all | 0 or above | the first papers on CMU-MOSI |

F1 is the weighted F1: the mean of both classes' F1, weighted by the number of clips of each class.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from meltr.errors import MeltrError

GRADES = 3
"""The largest absolute sentiment: grades are the whole numbers from -3 to 3."""

_Values = npt.NDArray[np.float64]


def sentiment_metrics(predicted: npt.ArrayLike, right: npt.ArrayLike) -> dict[str, float]:
    """Return all metrics of predicted sentiments.

    Args:
        predicted: Shape (N,).
        right: Shape (N,), in [-3, 3].

    Returns:
        ``mae`` (mean absolute error), ``corr`` (`pearson`), and in percent ``ba``, ``f1``, ``ba_nonneg``, ``f1_nonneg``
        (see above) and ``acc7``: the accuracy of values rounded to the nearest grade (halves to the even one). ``ba``
        and ``f1`` are NaN if every true value is 0.

    Raises:
        MeltrError: If a predicted value is not finite.
        ValueError: If the shapes do not match, there is no clip, or a true value is not finite.
    """
    guess, truth = _checked(predicted, right)
    polar = truth != 0
    grades = (np.clip(np.rint(values), -GRADES, GRADES) for values in (guess, truth))
    return {
        "mae": float(np.abs(guess - truth).mean()),
        "corr": pearson(guess, truth),
        "ba": binary_accuracy(guess[polar] > 0, truth[polar] > 0),
        "f1": weighted_f1(guess[polar] > 0, truth[polar] > 0),
        "ba_nonneg": binary_accuracy(guess >= 0, truth >= 0),
        "f1_nonneg": weighted_f1(guess >= 0, truth >= 0),
        "acc7": 100 * float(np.equal(*grades).mean()),
    }


def pearson(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Return Pearson's correlation of two series of shape (N,); 0 if one of them is constant."""
    x, y = (np.asarray(values, dtype=np.float64) for values in (first, second))
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    x, y = ((values - values.mean()) / np.ptp(values) for values in (x, y))
    return float(np.clip(x @ y / np.sqrt((x @ x) * (y @ y)), -1, 1))


def binary_accuracy(predicted: npt.NDArray[np.bool_], right: npt.NDArray[np.bool_]) -> float:
    """Return the percentage of N answers that are correct; NaN for N = 0."""
    return 100 * float((predicted == right).mean()) if len(right) else float("nan")


def weighted_f1(predicted: npt.NDArray[np.bool_], right: npt.NDArray[np.bool_]) -> float:
    """Return the mean F1 of both classes weighted by their number of examples, in percent; NaN for N = 0."""
    if not len(right):
        return float("nan")
    total = 0.0
    for label in (False, True):
        hit = np.sum((predicted == label) & (right == label))
        members = np.sum(right == label)
        total += members * 2 * hit / max(np.sum(predicted == label) + members, 1)
    return 100 * float(total / len(right))


def _checked(predicted: npt.ArrayLike, right: npt.ArrayLike) -> tuple[_Values, _Values]:
    guess, truth = (np.asarray(values, dtype=np.float64) for values in (predicted, right))
    if guess.ndim != 1 or guess.shape != truth.shape or not guess.size:
        raise ValueError(f"predicted has shape {guess.shape}, right {truth.shape}: both must be (N,), N at least 1")
    if not np.isfinite(truth).all():
        raise ValueError(f"{np.sum(~np.isfinite(truth)):,} of {truth.size:,} right values are not finite")
    wrong = int(np.sum(~np.isfinite(guess)))
    if wrong:
        raise MeltrError(
            f"{wrong:,} of {guess.size:,} predicted values are not finite.",
            "The model has diverged: lower --lr, or evaluate in float32.",
        )
    return guess, truth
