"""Padding and resizing against the pixels of a published pipeline."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest

from meltr.video.frames.pictures import pad_to_square, padded_squares, resize, shrink_short_side
from places import shared

Image = pytest.importorskip("PIL.Image")


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(
    ("shape", "padded", "top", "left"),
    [((4, 10), (10, 10), 3, 0), ((10, 4), (10, 10), 0, 3), ((5, 10), (9, 10), 2, 0), ((6, 6), (6, 6), 0, 0)],
)
def test_both_short_sides_are_padded_with_black(shape, padded, top, left):
    picture = noise(*shape)
    square = pad_to_square(picture)
    assert square.shape[:2] == padded
    inside = square[top : top + shape[0], left : left + shape[1]]
    np.testing.assert_array_equal(inside, picture)
    assert square.astype(int).sum() == picture.astype(int).sum()


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [((48, 80), 24, (24, 40)), ((80, 48), 24, (40, 24)), ((48, 80), 60, (48, 80)), ((48, 80), None, (48, 80))],
)
def test_the_short_side_is_shrunk_and_never_enlarged(shape, size, expected):
    picture = noise(*shape)
    small = shrink_short_side(picture, size)
    assert small.shape == (*expected, 3)
    if expected == shape:
        np.testing.assert_array_equal(small, picture)


def test_a_picture_is_averaged_when_it_becomes_smaller():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[::2] = 255
    inside = resize(stripes, 8, 8)[1:-1].astype(int)  # at the border the filter is cut off
    assert np.abs(inside - 127).max() <= 1


def test_padded_squares_have_the_published_pixels():
    from safetensors.numpy import load_file

    from meltr.data.safe_pickle import load_pickle

    samples = shared("data", "violet_samples")
    golden = load_file(shared("reference", "violet", "preprocess.safetensors"))
    lines = (samples / "data" / "img_cc3m_val.tsv").read_text().splitlines()
    coded = {
        "msrvtt.pkl": load_pickle(samples / "extracted" / "msrvtt.pkl"),
        "img_cc3m_val.tsv": {name: frames for name, *frames in (line.split("\t") for line in lines)},
    }
    cases = json.loads(shared("reference", "violet", "preprocess.json").read_text())
    assert len(cases) == len(golden)
    for case in cases:
        jpeg = base64.b64decode(coded[case["file"]][case["key"]][case["frame"]])
        picture = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))
        expected = golden[case["tensor"]].transpose(1, 2, 0)
        np.testing.assert_array_equal(padded_squares(picture[None], expected.shape[0])[0], expected)
