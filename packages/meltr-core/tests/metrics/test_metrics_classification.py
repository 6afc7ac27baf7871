"""Top-k accuracy against scikit-learn and brute force."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import recall_score, top_k_accuracy_score

from meltr.errors import MeltrError
from meltr.metrics.classification import hits, per_class_accuracy, topk_accuracy


def example(seed: int, count: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, classes)), rng.integers(classes, size=count)


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(3, 9), st.integers(1, 6))
def test_topk_accuracy_is_that_of_scikit_learn(seed, count, classes, k):
    scores, labels = example(seed, count, classes)
    k = min(k, classes - 1)  # with k = classes scikit-learn warns that the score is perfect
    expected = top_k_accuracy_score(labels, scores, k=k, labels=range(classes))
    assert topk_accuracy(scores, labels, ks=(k,)) == {f"top{k}": pytest.approx(100 * expected)}


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(2, 6))
def test_per_class_accuracy_is_the_recall_of_scikit_learn(seed, count, classes):
    scores, labels = example(seed, count, classes)
    expected = recall_score(labels, scores.argmax(1), labels=range(classes), average=None, zero_division=np.nan)
    found = per_class_accuracy(scores, labels)
    present = np.isin(np.arange(classes), labels)
    assert found[present] == pytest.approx(100 * expected[present])
    assert np.isnan(found[~present]).all()


@given(st.integers(0, 10_000), st.integers(1, 5))
def test_with_ties_the_first_is_taken_as_argmax_does(seed, classes):
    rng = np.random.default_rng(seed)
    scores, labels = rng.integers(3, size=(20, classes)).astype(float), rng.integers(classes, size=20)
    assert hits(scores, labels).tolist() == (scores.argmax(1) == labels).tolist()
    pessimistic = [(row >= row[label]).sum() == 1 for row, label in zip(scores, labels, strict=True)]
    assert hits(scores, labels, ties="pessimistic").tolist() == pessimistic


def test_an_answer_outside_the_vocabulary_is_never_right():
    scores = np.array([[0.0, 1.0], [0.0, 1.0]])
    assert topk_accuracy(scores, [1, -1], ks=(1, 2)) == {"top1": 50.0, "top2": 50.0}
    assert hits(scores, [-1, -1]).tolist() == [False, False]
    assert per_class_accuracy(scores, [1, -1])[1] == 100


def test_more_guesses_than_classes_are_always_right():
    scores, labels = example(0, 10, 3)
    assert topk_accuracy(scores, labels)["top5"] == 100


def test_nan_and_misfits_are_refused():
    with pytest.raises(MeltrError, match="NaN"):
        topk_accuracy(np.array([[0.0, np.nan]]), [0])
    with pytest.raises(MeltrError, match="NaN"):
        topk_accuracy(np.array([[0.0, np.nan]]), [-1])
    with pytest.raises(ValueError, match="candidates"):
        hits(np.ones((1, 2)), [2])
    with pytest.raises(ValueError, match="candidates"):
        hits(np.ones((1, 2)), [-2])
    with pytest.raises(ValueError, match="shape"):
        hits(np.ones((2, 2)), [0])
    with pytest.raises(ValueError, match="k=0"):
        hits(np.ones((1, 2)), [0], k=0)
    with pytest.raises(ValueError, match="positions"):
        hits(np.ones((1, 2)), [0], ties="positions")


def test_metrics_are_light_to_import():
    code = (
        "import sys, meltr.video.tasks.retrieval, meltr.metrics.classification, meltr.video.tasks.baselines;"
        "heavy = {'torch', 'sklearn', 'torchmetrics', 'scipy'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
