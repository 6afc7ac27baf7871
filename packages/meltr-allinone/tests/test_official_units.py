"""Unit cases of the official code that are about data, for every golden set: frames, image pipeline, learning rate."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torchvision.transforms.v2 import functional

from meltr.data.sampling import middles
from meltr.engine.optim import lr_factor
from meltr_allinone.sampling import SAMPLERS
from meltr_allinone.transforms import centre_crop, channels_first, normalised, resized_side, resized_squares

SHARED = Path(os.environ.get("MELTR_SHARED", Path(__file__).resolve().parents[4] / "shared"))
GOLDENS = Path(os.environ.get("MELTR_GOLDENS", SHARED / "reference" / "allinone"))
FOLDERS = sorted(file.parent for file in GOLDENS.rglob("units.json"))

DRAWS, SHORT = 1000, 40
"""So many draws see every frame of a segment of at most SHORT: one is missed with probability (1 - 1 / SHORT)^DRAWS."""


@pytest.fixture(params=FOLDERS or [None], ids=lambda folder: folder.name if folder else "none")
def folder(request: pytest.FixtureRequest) -> Path:
    if request.param is None:
        pytest.skip(f"no units.json below {GOLDENS} (set MELTR_GOLDENS)")
    return request.param


def cases(folder: Path, name: str) -> Any:
    units = json.loads((folder / "units.json").read_text())
    if name not in units:
        pytest.skip(f"{folder / 'units.json'} has no {name!r}")
    return units[name]


def test_uniform_frames(folder):
    for case in cases(folder, "frames"):
        total, count = case["vlen"], case["num_frames"]
        assert list(middles(total, min(total, count))) == case["uniform"]
        if total >= count:
            assert list(SAMPLERS["uniform"](total, count)) == case["uniform"]


def test_random_frames(folder):
    """The released sampler draws between the official first and last candidate of every segment, both included."""
    for case in cases(folder, "frames"):
        total, count, candidates = case["vlen"], case["num_frames"], case["random_candidates_first_last_inclusive"]
        random.seed(0)
        seen = [set(column) for column in zip(*(SAMPLERS["released"](total, count) for _ in range(DRAWS)), strict=True)]
        if isinstance(candidates, str):  # the original stops with an error
            assert len(seen) == count
            assert set.union(*seen) == set(range(total))
            continue
        for found, (first, last) in zip(seen, candidates, strict=True):
            assert min(found) >= first
            assert max(found) <= last
            if last - first < SHORT:
                assert found == set(range(first, last + 1))


def test_random_frames_reach_the_last_of_a_segment(folder):
    for case in cases(folder, "frames"):
        total, count, candidates = case["vlen"], case["num_frames"], case["random_candidates_first_last_inclusive"]
        if isinstance(candidates, str) or total > SHORT:
            continue
        random.seed(0)
        seen = [set(column) for column in zip(*(SAMPLERS["random"](total, count) for _ in range(DRAWS)), strict=True)]
        assert [max(found) for found in seen] == [last + 1 for _, last in candidates]


def test_image_pipeline(folder):
    sizes, file = cases(folder, "transform"), folder / "units.safetensors"
    if not file.is_file():
        pytest.skip(f"no {file}")
    tensors = load_file(file)
    crop, pictures = sizes["crop"], tensors["transform.in"]
    assert resized_side(crop) == sizes["resize"]
    squares = resized_squares(pictures.permute(0, 2, 3, 1).contiguous().numpy(), crop)
    video = centre_crop(channels_first(squares), crop)
    torch.testing.assert_close(normalised(video), tensors["transform.out"], atol=1e-6, rtol=0)
    tensor = functional.resize(pictures, [sizes["resize"]] * 2, antialias=True)
    assert (tensor.int() - channels_first(squares).int()).abs().max() <= 1


def test_learning_rate_after_warmup(folder):
    """Warm-up is another matter: core's reaches the peak a step later and starts above 0."""
    case = cases(folder, "lr")
    total, warmup = case["total"], case["warmup"]
    for step, expected in case["lr_at_step"]:
        if step >= warmup:
            found = case["base_lr"] * lr_factor(step, total, schedule="linear", warmup=warmup)
            assert found == pytest.approx(expected, rel=1e-9, abs=1e-15)
