"""Batches: a pure function of (seed, epoch, index), augmented as torchvision and plain loops do it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import functional as tv

from meltr.context import BatchSource
from meltr_vision.data.augmentation import crop_and_flip
from meltr_vision.data.batches import EvalSplit, ImageBatches
from meltr_vision.data.transforms import Pipeline

PIXELS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (37, 3, 12, 12), dtype=np.uint8))
PLAIN = Pipeline(mean=(0.0,) * 3, std=(1 / 255,) * 3, image_size=12, flip=False, padding=0)


def source(pipeline: Pipeline = PLAIN, *, batch_size: int = 8, seed: int = 1, drop_last: bool = True) -> ImageBatches:
    return ImageBatches(
        PIXELS,
        torch.arange(37),
        np.arange(2, 37),
        pipeline=pipeline,
        batch_size=batch_size,
        seed=seed,
        drop_last=drop_last,
    )


AUGMENTED = Pipeline(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), image_size=12, padding=2)


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@settings(max_examples=20, deadline=None)
@given(st.data())
def test_crop_and_flip_like_torchvision(mode: str, data: st.DataObject) -> None:
    padding = data.draw(st.integers(0, 6))
    place = st.lists(st.integers(0, 2 * padding), min_size=5, max_size=5)
    top, left = data.draw(place), data.draw(place)
    flip = data.draw(st.lists(st.booleans(), min_size=5, max_size=5))
    found = crop_and_flip(
        PIXELS[:5],
        top=torch.tensor(top),
        left=torch.tensor(left),
        flip=torch.tensor(flip),
        padding=padding,
        mode=mode,
    )
    for i in range(5):
        padded = tv.pad(PIXELS[i].float(), [padding] * 4, padding_mode="constant" if mode == "zeros" else "reflect")
        expected = tv.crop(padded, top[i], left[i], 12, 12)
        expected = tv.hflip(expected) if flip[i] else expected
        assert torch.equal(found[i].float(), expected)


def test_normalisation_like_torchvision() -> None:
    expected = tv.normalize(PIXELS.float() / 255, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
    torch.testing.assert_close(AUGMENTED.normalise(PIXELS), expected)


def test_resizing_like_torchvision() -> None:
    larger = Pipeline(mean=(0.0,) * 3, std=(1.0,) * 3, image_size=20)
    expected = tv.resize(PIXELS.float() / 255, [20, 20], antialias=True)
    torch.testing.assert_close(larger.normalise(PIXELS), expected, atol=1e-5, rtol=1e-5)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in ("image", "label"))


def test_an_epoch_shows_every_example_once() -> None:
    batches = source(drop_last=False)
    assert isinstance(batches, BatchSource)
    assert (batches.size, len(batches)) == (35, 5)
    found = list(batches.batches(0))
    assert [len(each["label"]) for each in found] == [8, 8, 8, 8, 3]
    labels = torch.cat([each["label"] for each in found])
    assert sorted(labels.tolist()) == list(range(2, 37))
    for each in found:
        torch.testing.assert_close(each["image"], PIXELS[each["label"]].float())


def test_the_last_smaller_batch_is_left_out_unless_it_is_the_only_one() -> None:
    assert [len(each["label"]) for each in source().batches(0)] == [8] * 4
    assert [len(each["label"]) for each in source(batch_size=500).batches(0)] == [35]
    assert len(source(batch_size=500)) == 1
    assert len(source(batch_size=35)) == len(source(batch_size=35, drop_last=False)) == 1


def test_batches_are_a_pure_function_of_seed_epoch_and_index() -> None:
    batches = source(AUGMENTED)
    whole = list(batches.batches(3))
    for start in range(len(batches) + 1):
        tail = list(batches.batches(3, start))
        assert len(tail) == len(whole) - start
        assert all(same(a, b) for a, b in zip(tail, whole[start:], strict=True))
    torch.manual_seed(99)
    again = list(source(AUGMENTED).batches(3))
    assert all(same(a, b) for a, b in zip(again, whole, strict=True))
    assert not same(next(batches.batches(4)), whole[0])
    assert not same(next(source(AUGMENTED, seed=2).batches(3)), whole[0])


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    list(source(AUGMENTED).batches(0))
    assert torch.equal(before, torch.get_rng_state())


def test_all_crops_and_flips_occur() -> None:
    position = torch.zeros(1, 1, 5, 5, dtype=torch.uint8)
    position[0, 0, 1, 1] = 1
    pipeline = Pipeline(mean=(0.0,), std=(1 / 255,), image_size=5, padding=1)
    batches = ImageBatches(
        position.expand(600, 1, 5, 5), torch.zeros(600), np.arange(600), pipeline=pipeline, batch_size=600, seed=0
    )
    image = next(batches.batches(0))["image"]
    share = image.mean(0)[0]
    expected = torch.zeros(5, 5)
    expected[:3, :3] += 1 / 18
    expected[:3, 2:] += 1 / 18
    torch.testing.assert_close(share, expected, atol=0.03, rtol=0)


def test_evaluation_goes_in_order_without_augmentation() -> None:
    split = EvalSplit(PIXELS, torch.arange(37), torch.tensor([5, 1, 9]), AUGMENTED, ("a",))
    found = list(split.batches(2))
    assert [labels.tolist() for _, labels in found] == [[5, 1], [9]]
    torch.testing.assert_close(found[0][0], AUGMENTED.normalise(PIXELS[[5, 1]]))
