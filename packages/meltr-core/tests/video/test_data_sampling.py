"""Frame samplers against the published choices, closed forms and properties."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meltr.errors import UserError
from meltr.video.frames.sampling import SAMPLERS, centres, middles, random_in_segments, sampler_named
from places import shared

SIZES = {"total": st.integers(1, 2000), "count": st.integers(1, 40)}


@pytest.mark.parametrize("name", sorted(SAMPLERS))
@given(**SIZES)
def test_every_video_gives_as_many_ascending_frames_as_are_wanted(name, total, count):
    indices = sampler_named(name)(total, count)
    assert len(indices) == count
    assert list(indices) == sorted(indices)
    assert 0 <= indices[0] <= indices[-1] < total


@pytest.mark.parametrize("name", sorted(SAMPLERS))
@given(count=st.integers(1, 40), data=st.data())
def test_no_frame_is_taken_twice_while_there_are_enough(name, count, data):
    total = data.draw(st.integers(count, 2000))
    assert len(set(sampler_named(name)(total, count))) == count


@pytest.mark.parametrize("name", sorted(SAMPLERS))
@pytest.mark.parametrize(("total", "count"), [(0, 5), (5, 0), (-1, 1)])
def test_no_frames_or_none_wanted_is_a_mistake_of_the_caller(name, total, count):
    with pytest.raises(ValueError, match="at least one"):
        sampler_named(name)(total, count)


@given(**SIZES)
def test_centres_are_even_with_a_margin_at_both_ends(total, count):
    """Evenly spaced points (i + 1) total / (count + 1), none rounded by a whole frame."""
    for i, index in enumerate(centres(total, count)):
        assert 0 <= (i + 1) * total / (count + 1) - index < 1


def test_centres_are_those_of_the_published_extraction():
    table = json.loads(shared("reference", "violet", "frames.json").read_text())
    assert len(table) == 10
    for name, case in table.items():
        assert list(centres(case["decoded_frames"], 5)) == case["indices"], name


def test_segments_are_those_of_the_published_loader():
    """Where a video has fewer frames than are wanted, the published loader fails or returns too few."""
    cases = json.loads(shared("reference", "allinone", "units.json").read_text())["frames"]
    checked = 0
    for case in cases:
        total, count = case["vlen"], case["num_frames"]
        if total < count:
            continue
        assert list(middles(total, count)) == case["uniform"]
        bounds = case["random_candidates_first_last_inclusive"]
        if isinstance(bounds, str):
            continue
        checked += 1
        draws = [random_in_segments(total, count, rng=random.Random(seed), spare_last=True) for seed in range(300)]
        for segment, (first, last) in enumerate(bounds):
            seen = {draw[segment] for draw in draws}
            assert seen <= set(range(first, last + 1))
            if last - first < 10:
                assert seen == set(range(first, last + 1))
    assert checked >= 5


@given(count=st.integers(1, 12), each=st.integers(1, 12), seed=st.integers(0, 99))
def test_random_frames_lie_in_segments_of_equal_length(count, each, seed):
    indices = random_in_segments(count * each, count, rng=random.Random(seed))
    assert [index // each for index in indices] == list(range(count))


def test_every_frame_can_be_drawn_at_random():
    rng = random.Random(0)
    assert {index for _ in range(200) for index in random_in_segments(11, 3, rng=rng)} == set(range(11))


def test_the_global_generator_decides_where_none_is_given():
    random.seed(5)
    first = random_in_segments(1000, 4)
    random.seed(5)
    assert random_in_segments(1000, 4) == first == random_in_segments(1000, 4, rng=random.Random(5))


def test_an_unknown_sampler_is_answered_with_the_valid_ones():
    with pytest.raises(UserError, match="no frame sampler 'centre'") as error:
        sampler_named("centre")
    assert "Did you mean 'centres'?" in str(error.value)
