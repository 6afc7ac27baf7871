"""Deterministic splits of a training set into train, validation and held-out examples. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from meltr.errors import UserError

Indices = npt.NDArray[np.int64]


def part_size(name: str, amount: float, count: int) -> int:
    """Return the number of examples, of `count`, that `amount` stands for.

    Args:
        name: Name of the setting, for the message.
        amount: A fraction of all examples (< 1) or a number of examples (>= 1); 0: none.
        count: Number of all examples.

    Returns:
        ``round(amount * count)``, but at least 1, for a fraction; the number itself otherwise.

    Raises:
        UserError: If `amount` is negative, not finite, or neither a fraction below 1 nor a whole number.
    """
    if not np.isfinite(amount) or amount < 0 or (amount >= 1 and amount != int(amount)):
        raise UserError(
            f"{name}={amount} is neither a fraction of the training set nor a number of examples.",
            f"Give a fraction below 1 (--set {name}=0.1) or a whole number (--set {name}=500); 0 means none.",
        )
    if amount == 0:
        return 0
    return int(amount) if amount >= 1 else max(1, round(amount * count))


def balanced_order(count: int, seed: int, labels: Sequence[int] | npt.NDArray[np.integer] | None = None) -> Indices:
    """Return a random order of ``range(count)`` in which every prefix holds the classes in proportion.

    With `labels`, the j-th of the n shuffled members of a class gets the key (j + 1/2) / n. The examples are sorted by
    key, with ties in random order. Among the first k examples, a class of n members then has n k / count of them, to
    within 1/2 + n C / (2 count) for C classes: within one where classes are of equal size. (Up to key t every class is
    within 1/2 of n t, so k is within C/2 of count t.) Without `labels` the order is a plain random permutation.

    Args:
        count: Number of examples.
        seed: Seed of the order; the order depends on no other random state.
        labels: Class of each example, shape (count,).

    Returns:
        A permutation, shape (count,), int64.
    """
    order = np.random.default_rng(seed).permutation(count).astype(np.int64)
    if labels is None:
        return order
    shuffled = np.asarray(labels)[order]
    if shuffled.shape != (count,):
        raise ValueError(f"labels has shape {shuffled.shape}, not ({count},)")
    by_class = np.argsort(shuffled, kind="stable")
    _, starts, sizes = np.unique(shuffled[by_class], return_index=True, return_counts=True)
    rank = np.empty(count, dtype=np.int64)
    rank[by_class] = np.arange(count) - np.repeat(starts, sizes)
    size = np.empty(count, dtype=np.int64)
    size[by_class] = np.repeat(sizes, sizes)
    return order[np.argsort((rank + 0.5) / size, kind="stable")]


def split_indices(
    count: int,
    parts: Mapping[str, float],
    *,
    seed: int,
    limit: int | None = None,
    labels: Sequence[int] | npt.NDArray[np.integer] | None = None,
) -> dict[str, Indices]:
    """Split ``range(count)`` into disjoint, class-balanced parts; the rest is ``train``.

    A part depends on `count`, `labels`, `seed` and the parts named before it, but not on `limit`: a run with fewer
    training examples is validated on the same examples.

    Args:
        count: Number of examples.
        parts: Name -> fraction (< 1) or number (>= 1) of examples, e.g. ``{"validation": 0.1, "held_out": 500}``.
        seed: Seed of the splits.
        limit: Keep only this many examples of ``train``; None: all.
        labels: Class of each example, shape (count,); None: split without regard to classes.

    Returns:
        Name -> sorted indices, for the names in `parts` and ``train``.

    Raises:
        UserError: If no training example would be left.
    """
    order = balanced_order(count, seed, labels)
    found: dict[str, Indices] = {}
    start = 0
    for name, amount in parts.items():
        size = part_size(f"data.{name}", amount, count)
        found[name] = np.sort(order[start : start + size])
        start += size
    if start >= count:
        wanted = ", ".join(f"data.{name}={amount:g}" for name, amount in parts.items()) or "no part"
        raise UserError(
            f"No training example would be left: {wanted} takes {start} of {count} examples.",
            "Make these parts smaller, e.g. --set data.validation=0.1.",
        )
    rest = order[start:]
    found["train"] = np.sort(rest if limit is None else rest[:limit])
    return found


def limit_indices(
    count: int, limit: int | None, *, seed: int, labels: Sequence[int] | npt.NDArray[np.integer] | None = None
) -> Indices:
    """Return at most `limit` elements of ``range(count)``, class-balanced and sorted; None returns all.

    Args:
        count: Number of examples.
        limit: Number of examples to keep.
        seed: Seed of the selection.
        labels: Class of each example, shape (count,).
    """
    if limit is None or limit >= count:
        return np.arange(count, dtype=np.int64)
    return np.sort(balanced_order(count, seed, labels)[:limit])
