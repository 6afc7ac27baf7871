"""Paired tests of two configurations over common seeds; needs only the standard library."""

from __future__ import annotations

import math
from collections.abc import Sequence

_ITERATIONS = 300
_TINY = 1e-300
_BISECTIONS = 200


def mean(values: Sequence[float]) -> float:
    """Return the mean."""
    return math.fsum(values) / len(values)


def deviation(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation (n - 1 in the denominator); None for fewer than two values."""
    if len(values) < 2:
        return None
    centre = mean(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1))


def paired_t(differences: Sequence[float]) -> float | None:
    """Return the two-sided p value of the paired t-test.

    With t = mean / (s / sqrt(n)) and n - 1 degrees of freedom v, p = I_{v / (v + t^2)}(v / 2, 1 / 2), the regularised
    incomplete beta function.

    Args:
        differences: One difference per pair.

    Returns:
        The p value; None for fewer than two pairs, or if all differences are equal (t is then undefined).
    """
    spread = deviation(differences)
    if spread is None or spread <= 1e-12 * max(abs(value) for value in differences):
        return None
    freedom = len(differences) - 1
    t = mean(differences) / (spread / math.sqrt(len(differences)))
    return incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t))


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Return p values corrected for their number by Holm's step-down method (Holm 1979), in the same order.

    Args:
        values: One p value per test; None stays None and does not count.
    """
    order = sorted((p, place) for place, p in enumerate(values) if p is not None)
    found: list[float | None] = [None] * len(values)
    highest = 0.0
    for rank, (p, place) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p))
        found[place] = highest
    return found


def half_width(values: Sequence[float], confidence: float = 0.95) -> float | None:
    """Return half the width of the confidence interval of the mean: t s / sqrt(n), for independent values.

    Args:
        values: The values.
        confidence: Probability that the interval holds the mean, if the values are normal.

    Returns:
        Half the width; None for fewer than two values.
    """
    spread = deviation(values)
    if spread is None:
        return None
    freedom = len(values) - 1
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):  # P(|T| > t) = I_x(v / 2, 1 / 2) with x = v / (v + t^2), which increases with x
        middle = (low + high) / 2
        low, high = (low, middle) if incomplete_beta(freedom / 2, 0.5, middle) > 1 - confidence else (middle, high)
    t = math.sqrt(freedom * (1 - high) / max(high, _TINY))
    return t * spread / math.sqrt(len(values))


def signed_rank(differences: Sequence[float]) -> float | None:
    """Return the exact two-sided p value of Wilcoxon's signed-rank test.

    Under the null hypothesis all 2^n patterns of signs are equally likely; all of them are counted. Zeros are dropped,
    and ties get their mean rank. The test does not assume a normal distribution, but with n pairs p is at least
    2^(1-n): p < 0.05 needs at least six pairs.

    Args:
        differences: One difference per pair.

    Returns:
        The p value; None if all differences are zero, or there are none.
    """
    nonzero = [value for value in differences if value != 0]
    if not nonzero:
        return None
    ranks = _doubled_ranks([abs(value) for value in nonzero])
    total = sum(ranks)
    positive = sum(rank for rank, value in zip(ranks, nonzero, strict=True) if value > 0)
    counts = [1] + [0] * total  # counts[s]: number of sign patterns whose positive ranks sum to s
    for rank in ranks:
        for sum_ in range(total, rank - 1, -1):
            counts[sum_] += counts[sum_ - rank]
    tail = sum(counts[: min(positive, total - positive) + 1])
    return min(1.0, 2 * tail / (1 << len(ranks)))


def _doubled_ranks(sizes: Sequence[float]) -> list[int]:
    """Return twice the rank of each value, so that the mean ranks of ties are integers too."""
    return [2 * sum(other < size for other in sizes) + sizes.count(size) + 1 for size in sizes]


def incomplete_beta(a: float, b: float, x: float) -> float:
    """Return the regularised incomplete beta function I_x(a, b) by its continued fraction.

    Args:
        a: First parameter, above 0.
        b: Second parameter, above 0.
        x: Upper limit, 0 to 1.
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(a, b, x) / a
    return 1 - front * _fraction(b, a, 1 - x) / b


def _fraction(a: float, b: float, x: float) -> float:
    """Evaluate the continued fraction 26.5.8 of Abramowitz and Stegun by Lentz's method."""

    def away_from_zero(value: float) -> float:
        return value if abs(value) > _TINY else _TINY

    c = 1.0
    d = 1 / away_from_zero(1 - (a + b) * x / (a + 1))
    result = d
    for m in range(1, _ITERATIONS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        before = result
        for coefficient in (even, odd):
            d = 1 / away_from_zero(1 + coefficient * d)
            c = away_from_zero(1 + coefficient / c)
            result *= c * d
        if abs(result - before) <= 1e-15 * abs(result):
            break
    return result
