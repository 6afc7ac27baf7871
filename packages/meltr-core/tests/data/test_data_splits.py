"""Splits: disjoint, complete, class-balanced, and independent of what is cut after them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedShuffleSplit

from meltr.data.splits import balanced_order, limit_indices, split_indices
from meltr.errors import UserError

LABELS = np.repeat(np.arange(10), 50)


def test_parts_are_disjoint_and_complete() -> None:
    cut = split_indices(500, {"validation": 0.1, "held_out": 30}, seed=3, labels=LABELS)
    assert {name: len(part) for name, part in cut.items()} == {"validation": 50, "held_out": 30, "train": 420}
    assert sorted(np.concatenate(list(cut.values())).tolist()) == list(range(500))


def test_balanced_like_scikit_learns_stratified_split() -> None:
    cut = split_indices(500, {"validation": 100}, seed=0, labels=LABELS)
    _, other = next(StratifiedShuffleSplit(1, test_size=100, random_state=0).split(LABELS[:, None], LABELS))
    assert Counter(LABELS[cut["validation"]].tolist()) == Counter(LABELS[other].tolist())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), st.integers(0, 5))
def test_every_beginning_is_proportional(labels: list[int], seed: int) -> None:
    order = balanced_order(len(labels), seed, labels)
    assert sorted(order.tolist()) == list(range(len(labels)))
    counts = Counter(labels)
    for end in range(len(labels) + 1):
        begun = Counter(labels[i] for i in order[:end])
        for name, total in counts.items():
            bound = 0.5 + total * len(counts) / (2 * len(labels))
            assert abs(begun[name] - total * end / len(labels)) <= bound + 1e-9


@pytest.mark.parametrize("size", [1, 2, 7, 20])
def test_every_beginning_is_within_one_where_classes_are_of_equal_size(size: int) -> None:
    labels = [name for name in range(6) for _ in range(size)]
    order = balanced_order(len(labels), 3, labels)
    for end in range(len(labels) + 1):
        begun = Counter(labels[i] for i in order[:end])
        assert all(abs(begun[name] - end / 6) <= 1 for name in range(6))


def test_depends_on_the_seed_alone() -> None:
    first, again, other = (split_indices(500, {"validation": 50}, seed=s, labels=LABELS) for s in (1, 1, 2))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["validation"], other["validation"])


def test_limit_and_later_parts_leave_earlier_ones_alone() -> None:
    plain = split_indices(500, {"validation": 50}, seed=1, labels=LABELS)
    more = split_indices(500, {"validation": 50, "held_out": 20}, seed=1, limit=40, labels=LABELS)
    assert np.array_equal(plain["validation"], more["validation"])
    assert len(more["train"]) == 40
    assert set(more["train"]) <= set(plain["train"])
    assert Counter(LABELS[more["train"]].tolist()) == dict.fromkeys(range(10), 4)


def test_without_labels_and_with_nothing_to_cut() -> None:
    cut = split_indices(7, {"validation": 0}, seed=0)
    assert len(cut["validation"]) == 0
    assert cut["train"].tolist() == list(range(7))


def test_a_tiny_part_is_one_example() -> None:
    assert len(split_indices(10, {"validation": 0.001}, seed=0)["validation"]) == 1


@pytest.mark.parametrize("parts", [{"validation": 500}, {"validation": 0.6, "held_out": 200}])
def test_nothing_left_is_an_error(parts: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"No training example would be left.*500 examples"):
        split_indices(500, parts, seed=0)


@pytest.mark.parametrize("amount", [1.5, -0.1, float("nan"), float("inf")])
def test_neither_part_nor_number(amount: float) -> None:
    with pytest.raises(UserError, match=r"data\.validation="):
        split_indices(500, {"validation": amount}, seed=0)


def test_limit_indices() -> None:
    assert limit_indices(5, None, seed=0).tolist() == [0, 1, 2, 3, 4]
    assert limit_indices(5, 9, seed=0).tolist() == [0, 1, 2, 3, 4]
    kept = limit_indices(500, 20, seed=0, labels=LABELS)
    assert Counter(LABELS[kept].tolist()) == dict.fromkeys(range(10), 2)
