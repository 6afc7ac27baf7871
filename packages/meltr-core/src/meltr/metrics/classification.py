"""Top-k accuracy, over all examples and per class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from meltr.metrics.ranking import Ties, ranks

IGNORED = -100
"""Label of an example whose class is none of the classes; the default ``ignore_index`` of F.cross_entropy."""


def hits(scores: npt.ArrayLike, labels: npt.ArrayLike, *, k: int = 1, ties: Ties = "stable") -> npt.NDArray[np.bool_]:
    """Return for each example whether its class is among the k highest scores.

    Args:
        scores: Shape (N, classes), the higher the better.
        labels: Shape (N,): the correct class; -100: none of the classes, which is never a hit.
        k: Number of guesses that count; a value above the number of classes means all.
        ties: How equal scores are ranked, see `meltr.metrics.ranking.Ties`; ``stable`` prefers the lower index, as
            argmax does.

    Returns:
        Shape (N,).

    Raises:
        MeltrError: If a score is NaN.
        ValueError: If the shapes do not match, a label is out of range, `k` is below 1, or `ties` is ``positions``.
    """
    if k < 1:
        raise ValueError(f"k={k}: at least one guess must count")
    if ties == "positions":
        raise ValueError("ties='positions' gives several ranks per example: choose another")
    right = np.asarray(labels)
    known = right != IGNORED
    found: npt.NDArray[np.bool_] = known & (ranks(scores, np.where(known, right, 0), ties=ties) <= k)
    return found


def topk_accuracy(
    scores: npt.ArrayLike, labels: npt.ArrayLike, *, ks: Sequence[int] = (1, 5), ties: Ties = "stable"
) -> dict[str, float]:
    """Return ``top1``, ``top5`` (for each of `ks`) in percent; arguments and errors are those of `hits`."""
    return {f"top{k}": 100 * float(hits(scores, labels, k=k, ties=ties).mean()) for k in ks}


def per_class_accuracy(
    scores: npt.ArrayLike, labels: npt.ArrayLike, *, k: int = 1, ties: Ties = "stable"
) -> npt.NDArray[np.float64]:
    """Return the accuracy of each class in percent, shape (classes,); NaN for a class without examples.

    The mean of the values that are not NaN is the class-balanced accuracy. Arguments and errors are those of `hits`.
    """
    found, right = hits(scores, labels, k=k, ties=ties), np.asarray(labels)
    known = right != IGNORED
    classes = np.asarray(scores).shape[1]
    count = np.bincount(right[known], minlength=classes)
    hit = np.bincount(right[known], weights=found[known], minlength=classes)
    with np.errstate(invalid="ignore"):
        return 100 * hit / np.where(count > 0, count, np.nan)


def macro_f1(predicted: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Return the mean of the F1 scores of all classes in percent.

    A class counts if it is predicted or correct for some example; its F1 is 2 TP / (2 TP + FP + FN).

    Args:
        predicted: Shape (N,): the predicted class.
        labels: Shape (N,): the correct class; -100: none of the classes, so that every prediction is wrong.

    Raises:
        ValueError: If the shapes differ or there is no example.
    """
    found, right = np.asarray(predicted), np.asarray(labels)
    if found.shape != right.shape or found.ndim != 1 or not len(found):
        raise ValueError(f"expected two vectors of the same length, got the shapes {found.shape} and {right.shape}")
    scores = []
    for each in sorted({*found.tolist(), *right.tolist()} - {IGNORED}):
        hit = np.count_nonzero((found == each) & (right == each))
        scores.append(2 * hit / (np.count_nonzero(found == each) + np.count_nonzero(right == each)))
    return 100 * float(np.mean(scores))
