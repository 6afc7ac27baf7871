"""Frames kept in memory: the same as from their source, changed once, and never more than fit."""

from __future__ import annotations

import functools
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meltr.video.frames.source import FrameSource, Remembered

SIZE = 2 * 4 * 6 * 3
"""Bytes of the frames of one video of `Source`, once halved."""


class Source:
    """Two frames of 8 x 6 a video, drawn from its key; counts how often it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def frames(self, key: str) -> np.ndarray:
        self.asked.append(key)
        if not key.isdigit():
            raise KeyError(key)
        return np.random.default_rng(int(key)).integers(0, 256, (2, 8, 6, 3), np.uint8)


def halved(frames: np.ndarray, start: int = 0) -> np.ndarray:
    return np.ascontiguousarray(frames[:, start::2])


@given(st.lists(st.integers(0, 6).map(str), max_size=30), st.integers(0, 8 * SIZE))
def test_frames_are_those_of_the_source_whatever_is_kept(keys, most_bytes):
    source = Source()
    remembered = Remembered(source, halved, most_bytes=most_bytes)
    for key in keys:
        assert np.array_equal(remembered.frames(key), halved(Source().frames(key)))
    fits = most_bytes // SIZE
    kept = list(dict.fromkeys(keys))[:fits]  # the first ones stay, whatever comes later
    assert {key: source.asked.count(key) for key in kept} == dict.fromkeys(kept, 1)
    others = [key for key in keys if key not in kept]
    assert sorted(source.asked) == sorted(kept + others)


def test_a_video_that_does_not_fit_leaves_room_for_a_smaller_one():
    class Sized(Source):
        def frames(self, key: str) -> np.ndarray:
            return super().frames(key)[: 1 if key == "2" else 2]

    source = Sized()
    remembered = Remembered(source, halved, most_bytes=SIZE * 3 // 2)
    for key in ("0", "1", "2") * 2:
        remembered.frames(key)
    assert source.asked == ["0", "1", "2", "1"]


def test_errors_are_those_of_the_source_and_are_not_kept():
    source = Source()
    remembered = Remembered(source, halved, most_bytes=SIZE)
    for _ in range(2):
        with pytest.raises(KeyError, match="absent"):
            remembered.frames("absent")
    assert source.asked == ["absent", "absent"]
    assert remembered.frames("3").nbytes == SIZE


def test_a_worker_gets_what_is_kept():
    remembered = Remembered(Source(), functools.partial(halved, start=1), most_bytes=SIZE)
    frames = remembered.frames("5")
    assert isinstance(remembered, FrameSource)
    copy = pickle.loads(pickle.dumps(remembered))
    assert np.array_equal(copy.frames("5"), frames)
    assert copy._source.asked == ["5"]
