"""Unit cases of the official code, for every golden set: data, metrics, losses, learning rate."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torchvision.transforms.v2 import functional

from meltr.optim.building import lr_factor
from meltr.video.frames.sampling import middles
from meltr.video.tasks.retrieval import summary, text_to_video, video_to_text
from meltr_allinone.alignment import alignment_distance, transport_plan
from meltr_allinone.losses import contrastive_loss, similarity
from meltr_allinone.official import with_frames
from meltr_allinone.sampling import SAMPLERS
from meltr_allinone.transforms import centre_crop, channels_first, normalised, resized_side, resized_squares
from places import golden_root, golden_sets, optional

FOLDERS = golden_sets("allinone", "units.json")
NONE = f"no units.json below {golden_root('allinone')} (set MELTR_GOLDENS)"

DRAWS, SHORT = 1000, 40
"""So many draws see every frame of a segment of at most SHORT: one is missed with probability (1 - 1 / SHORT)^DRAWS."""


@pytest.fixture(params=optional(FOLDERS, NONE), ids=lambda folder: folder.name)
def folder(request: pytest.FixtureRequest) -> Path:
    return request.param


def cases(folder: Path, name: str) -> Any:
    units = json.loads((folder / "units.json").read_text())
    if name not in units:
        pytest.skip(f"{folder / 'units.json'} has no {name!r}")
    return units[name]


def tensors(folder: Path, name: str) -> dict[str, torch.Tensor]:
    file = folder / f"{name}.safetensors"
    if not file.is_file():
        pytest.skip(f"no {file}")
    return load_file(file)


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
    sizes, case = cases(folder, "transform"), tensors(folder, "units")
    crop, pictures = sizes["crop"], case["transform.in"]
    assert resized_side(crop) == sizes["resize"]
    squares = resized_squares(pictures.permute(0, 2, 3, 1).contiguous().numpy(), crop)
    video = centre_crop(channels_first(squares), crop)
    torch.testing.assert_close(normalised(video), case["transform.out"], atol=1e-6, rtol=0)
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_word_patch_alignment(folder, dtype):
    settings, case = cases(folder, "ot"), tensors(folder, "units")
    found = alignment_distance(
        case["ot.text"].to(dtype),
        case["ot.image"].to(dtype),
        text_mask=~case["ot.text_pad"].bool(),
        video_mask=~case["ot.image_pad"].bool(),
        beta=settings["beta"],
        iterations=settings["iterations"],
    )
    torch.testing.assert_close(found, case["ot.distance"].to(dtype), atol=2e-6, rtol=0)


@pytest.mark.parametrize("order", ["raster", "shuffled"])
def test_transport_plan(folder, order):
    """The plan of the whole model's features; the original has it transposed."""
    expected, masks = tensors(folder, f"outputs_{order}"), tensors(folder, "inputs")["text_masks"]
    places = torch.arange(masks.shape[1])
    words = (places > 0) & (places < masks.sum(1, keepdim=True) - 1)
    cost = expected["itm.wpa_cost"]
    patches = (torch.arange(cost.shape[2]) > 0).expand(len(cost), -1)
    plan = transport_plan(cost, text_mask=words, video_mask=patches)
    torch.testing.assert_close(plan.mT, expected["itm.wpa_plan"], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close((cost * plan).sum((1, 2)), expected["itm.wpa_distance"], atol=2e-6, rtol=0)


def test_temporal_embeddings_of_other_lengths(folder):
    case = {key: value for key, value in tensors(folder, "units").items() if key.startswith("inflate.")}
    given = case.pop("inflate.in")
    for key, expected in case.items():
        assert torch.equal(with_frames(given, int(key.rpartition(".")[2])), expected)
    assert torch.equal(with_frames(given, given.shape[1]), given)


def test_contrastive_loss(folder):
    case = tensors(folder, "units")
    text, video = case["nce.text"], case["nce.video"]
    torch.testing.assert_close(similarity(text, video), case["nce.sim"], atol=1e-6, rtol=0)
    torch.testing.assert_close(contrastive_loss(text, video), case["nce.loss"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["plain", "ties"])
def test_retrieval_metrics(folder, kind):
    """Ties count in favour of text to video and are averaged in video to text, as in the public code."""
    matrix = tensors(folder, "units")[f"metrics.{kind}"].numpy()
    expected = cases(folder, "metrics")[kind]
    found = {"t2v": text_to_video(matrix, ties="optimistic"), "v2t": video_to_text(matrix, ties="average")}
    for direction, ranks in found.items():
        numbers = summary(ranks)
        for ours, theirs in {"r@1": "R1", "r@5": "R5", "r@10": "R10", "medr": "MedR", "meanr": "MeanR"}.items():
            assert numbers[ours] == pytest.approx(expected[direction][theirs], rel=0, abs=1e-9), (direction, ours)
