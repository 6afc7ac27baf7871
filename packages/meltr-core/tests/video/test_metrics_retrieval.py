"""Ranks and retrieval metrics against SciPy, brute force, enumeration and the stored answers of published code."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import load_file
from scipy.stats import rankdata

from meltr.errors import MeltrError
from meltr.metrics import ranking
from meltr.metrics.ranking import ranks
from meltr.video.tasks.retrieval import chance, retrieval_metrics, summary, text_to_video, video_to_text
from places import shared

FEW_VALUES = arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.integers(0, 3).map(float))
"""Matrices with many ties."""


def with_right(matrices=FEW_VALUES):
    return matrices.flatmap(
        lambda m: st.tuples(st.just(m), arrays(np.int64, len(m), elements=st.integers(0, m.shape[1] - 1)))
    )


@given(with_right())
@pytest.mark.parametrize(
    ("ties", "method"), [("optimistic", "min"), ("pessimistic", "max"), ("average", "average"), ("stable", "ordinal")]
)
def test_ranks_are_those_of_scipy(ties, method, case):
    scores, right = case
    expected = [rankdata(-row, method=method)[index] for row, index in zip(scores, right, strict=True)]
    assert ranks(scores, right, ties=ties).tolist() == expected


@given(with_right())
def test_every_position_of_a_tied_score_is_one_rank(case):
    scores, right = case
    expected = []
    for row, index in zip(scores, right, strict=True):
        expected += [place for place, value in enumerate(sorted(row, reverse=True), 1) if value == row[index]]
    assert ranks(scores, right, ties="positions").tolist() == expected


@pytest.mark.parametrize("ties", ["stable", "optimistic", "average", "pessimistic", "positions"])
@pytest.mark.parametrize("block", [1, 40, 1000])
def test_ranks_do_not_depend_on_the_blocks_that_bound_their_memory(ties, block, monkeypatch):
    rng = np.random.default_rng(0)
    scores, right = rng.integers(0, 4, (23, 17)).astype(float), rng.integers(0, 17, 23)
    whole = ranks(scores, right, ties=ties)
    monkeypatch.setattr(ranking, "BLOCK", block)
    assert ranks(scores, right, ties=ties).tolist() == whole.tolist()


def test_a_collapsed_model_is_not_rewarded():
    scores = np.zeros((100, 100))
    assert retrieval_metrics(scores, ties="pessimistic")["r@10"] == 0
    assert retrieval_metrics(scores, ties="average")["medr"] == 50.5
    assert retrieval_metrics(scores)["r@1"] == 1
    assert retrieval_metrics(scores, ties="optimistic")["r@1"] == 100


@pytest.mark.parametrize("place", [(0, 0), (1, 0)])
def test_nan_is_refused_wherever_it_stands_and_infinity_is_not(place):
    scores = np.eye(3)
    scores[place] = np.nan
    with pytest.raises(MeltrError, match="1 of 9 scores are NaN"):
        retrieval_metrics(scores)
    assert text_to_video(np.where(np.eye(3) > 0, np.inf, -np.inf)).tolist() == [1, 1, 1]


def best_of_several(scores, owners):
    """Rank of the best right text, by sorting all of them."""
    found = []
    for video in range(scores.shape[1]):
        order = sorted(range(len(owners)), key=lambda text: -scores[text, video])
        places = [place for place, text in enumerate(order, 1) if owners[text] == video]
        if places:
            found.append(min(places))
    return found


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 12))
def test_several_captions_of_a_video(seed, videos, texts):
    rng = np.random.default_rng(seed)
    scores, owners = rng.standard_normal((texts, videos)), rng.integers(videos, size=texts)
    assert video_to_text(scores, owners).tolist() == best_of_several(scores, owners)
    forward = [1 + int((row > row[owner]).sum()) for row, owner in zip(scores, owners, strict=True)]
    assert text_to_video(scores, owners).tolist() == forward


def test_right_captions_with_one_score_are_not_in_each_others_way():
    scores = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert video_to_text(scores, [0, 0, 1], "pessimistic").tolist() == [1, 1]


@given(st.integers(0, 10_000), st.integers(1, 15))
def test_directions_are_exchanged_by_transposing(seed, size):
    scores = np.random.default_rng(seed).standard_normal((size, size))
    one, other = retrieval_metrics(scores), retrieval_metrics(scores.T)
    for name in ("r@1", "r@5", "r@10", "medr", "meanr"):
        assert one[name] == other[f"v2t/{name}"]
        assert one[f"v2t/{name}"] == other[name]


@given(st.integers(0, 10_000), st.floats(0.1, 10), st.floats(-5, 5))
def test_monotone_changes_of_the_score_change_nothing(seed, factor, shift):
    scores = np.random.default_rng(seed).standard_normal((8, 8))
    assert retrieval_metrics(scores) == retrieval_metrics(np.exp(factor * scores + shift))


@pytest.mark.parametrize("texts_of_video", [[1, 1, 1, 1], [2, 1, 2], [3, 0, 1], [1, 4]])
def test_chance_is_the_mean_over_all_orders(texts_of_video):
    owners = np.repeat(np.arange(len(texts_of_video)), texts_of_video)
    count = len(owners)
    found = []
    for order in itertools.permutations(range(count)):
        scores = np.repeat(np.array(order, dtype=float)[:, None], len(texts_of_video), axis=1)
        found.append(video_to_text(scores, owners))
    expected = summary(np.concatenate(found))
    got = chance(len(texts_of_video), texts_of_video)
    assert {name: got[f"v2t/{name}"] for name in expected} == pytest.approx(expected, abs=1e-9)
    forward = summary(np.arange(1.0, len(texts_of_video) + 1))
    assert {name: got[name] for name in forward} == pytest.approx(forward, abs=1e-9)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="3 texts and 2 videos"):
        retrieval_metrics(np.ones((3, 2)))
    with pytest.raises(ValueError, match="one of 2 videos"):
        retrieval_metrics(np.ones((3, 2)), [0, 1, 2])
    with pytest.raises(ValueError, match="candidates"):
        ranks(np.ones((2, 3)), [0, 3])
    with pytest.raises(ValueError, match="ties='other'"):
        ranks(np.ones((2, 3)), [0, 1], ties="other")
    with pytest.raises(ValueError, match="shape"):
        ranks(np.ones((0, 3)), [])


def test_ranks_of_the_pairwise_scores_of_published_code():
    scores = load_file(shared("reference", "violet", "case_retrieval_original.safetensors"))["eval_scores"]
    expected = json.loads(shared("reference", "violet", "losses.json").read_text())["retrieval_eval"]
    found = text_to_video(scores)
    assert found.tolist() == expected["ranks"]
    metrics = summary(found)
    assert metrics["r@1"] == pytest.approx(100 * expected["r1"])
    assert metrics["r@5"] == pytest.approx(100 * expected["r5"])
    assert metrics["medr"] == expected["median"]


@pytest.mark.parametrize("case", ["plain", "ties", "constant"])
def test_every_position_counts_in_published_code_for_aligned_scores(case):
    stored = load_file(shared("reference", "univl", "outputs.safetensors"))
    found = summary(text_to_video(stored[f"metric.{case}.matrix"], ties="positions"))
    expected = stored[f"metric.{case}.r1_r5_r10_medr"]
    assert [found["r@1"], found["r@5"], found["r@10"]] == pytest.approx((100 * expected[:3]).tolist())
    assert found["medr"] == expected[3]


@pytest.mark.parametrize("case", ["plain", "ties"])
def test_ties_count_in_favour_or_half_in_published_code_for_dual_encoders(case):
    stored = load_file(shared("reference", "allinone", "units.safetensors"))[f"metrics.{case}"]
    expected = json.loads(shared("reference", "allinone", "units.json").read_text())["metrics"][case]
    for name, found in (
        ("t2v", summary(text_to_video(stored, ties="optimistic"))),
        ("v2t", summary(video_to_text(stored, ties="average"))),
    ):
        assert found["meanr"] == pytest.approx(expected[name]["MeanR"])
        assert found["r@1"] == pytest.approx(expected[name]["R1"])
        assert found["r@5"] == pytest.approx(expected[name]["R5"])
        assert found["r@10"] == pytest.approx(expected[name]["R10"])
        assert found["medr"] == pytest.approx(expected[name]["MedR"])
