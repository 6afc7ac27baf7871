"""Metrics of sentiment against scikit-learn, SciPy and values by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error

from meltr.errors import MeltrError
from meltr.video.tasks.regression import pearson, sentiment_metrics


@pytest.fixture(scope="module", params=[0, 1, 2])
def pair(request):
    """Predictions and right values in thirds, as annotators' means are; some right values are 0."""
    rng = np.random.default_rng(request.param)
    right = rng.integers(-9, 10, 300) / 3
    return right + rng.normal(0.3, 1.5, 300), right


def test_error_and_correlation_are_those_of_other_libraries(pair):
    predicted, right = pair
    found = sentiment_metrics(predicted, right)
    assert found["mae"] == pytest.approx(mean_absolute_error(right, predicted))
    assert found["corr"] == pytest.approx(pearsonr(predicted, right).statistic)


def test_signs_are_scored_with_and_without_zeros_as_scikit_learn_does(pair):
    predicted, right = pair
    found = sentiment_metrics(predicted, right)
    polar = right != 0
    for accuracy, f1, truth, guess in (
        ("ba", "f1", right[polar] > 0, predicted[polar] > 0),
        ("ba_nonneg", "f1_nonneg", right >= 0, predicted >= 0),
    ):
        assert found[accuracy] == pytest.approx(100 * accuracy_score(truth, guess))
        assert found[f1] == pytest.approx(100 * f1_score(truth, guess, average="weighted"))
    assert found["ba"] != found["ba_nonneg"]


def test_the_two_conventions_by_hand():
    # Without the clip of 0 two of three are right; with it 0 counts as positive, and so does the prediction of 0.
    found = sentiment_metrics([1.0, 0.0, 2.0, 0.5], [2.0, -1.0, -1.0, 0.0])
    assert found["ba"] == pytest.approx(100 * 2 / 3)
    assert found["ba_nonneg"] == pytest.approx(100 * 2 / 4)


def test_a_prediction_of_zero_is_not_positive_where_neutral_clips_are_left_out():
    assert sentiment_metrics([0.0], [1.0])["ba"] == 0
    assert sentiment_metrics([0.0], [1.0])["ba_nonneg"] == 100


def test_weighted_f1_by_hand():
    # Positive: F1 of 2 hits, 3 said, 3 there = 2/3; negative: 0 of 1 said, 1 there = 0; weights 3 and 1.
    found = sentiment_metrics([1, 1, -1, 1], [1, 1, 1, -1])
    assert found["f1"] == pytest.approx(100 * (3 * 2 / 3 + 0) / 4)


def test_grades_are_the_nearest_whole_numbers_between_the_ends():
    predicted = [3.4, -7.0, 0.4, 1.6, 1.4, -0.6]
    right = [3.0, -3.0, 0.2, 1.8, 2.0, -1.0]
    assert sentiment_metrics(predicted, right)["acc7"] == pytest.approx(100 * 5 / 6)


def test_a_constant_has_no_correlation_instead_of_nan():
    assert sentiment_metrics([0.1] * 3, [1.0, 2.0, 3.0])["corr"] == 0
    assert pearson([1, 2, 3], [4, 4, 4]) == 0
    # The mean of equal numbers need not be that number in floating point.
    assert pearson([0.1] * 10, np.arange(10)) == 0


@pytest.mark.parametrize("factor", [1e-200, 1.0, 1e150])
def test_correlation_knows_no_scale(factor):
    values = np.array([0.2, -1.3, 2.2, 0.7])
    assert pearson(factor * values, values) == pytest.approx(1)
    assert pearson(-factor * values + 3 * factor, values) == pytest.approx(-1)


def test_the_order_of_the_clips_does_not_matter(pair):
    predicted, right = pair
    order = np.random.default_rng(5).permutation(len(right))
    assert sentiment_metrics(predicted[order], right[order]) == pytest.approx(sentiment_metrics(predicted, right))


def test_neutral_clips_alone_have_no_sign():
    found = sentiment_metrics([0.5, -0.5], [0.0, 0.0])
    assert math.isnan(found["ba"])
    assert math.isnan(found["f1"])
    assert found["ba_nonneg"] == 50


def test_what_is_not_finite_is_an_error():
    with pytest.raises(MeltrError, match="1 of 2 predicted values are not finite"):
        sentiment_metrics([float("nan"), 1], [1, 1])
    with pytest.raises(ValueError, match="1 of 2 right values are not finite"):
        sentiment_metrics([1, 1], [float("inf"), 1])


@pytest.mark.parametrize(("predicted", "right"), [([], []), ([1], [1, 2]), ([[1]], [[1]]), (1, 1)])
def test_shapes_that_do_not_fit_are_errors(predicted, right):
    with pytest.raises(ValueError, match="shape"):
        sentiment_metrics(predicted, right)
