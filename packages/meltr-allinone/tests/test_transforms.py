"""Image pipeline and augmentation, against torchvision and Pillow."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from meltr_allinone.data.augmentation import augment, random_crop
from meltr_allinone.data.sampling import Drawn, draws
from meltr_allinone.data.transforms import (
    NORMALISATIONS,
    centre_crop,
    channels_first,
    normalised,
    resized_side,
    resized_squares,
)


def pictures(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", NORMALISATIONS)
@pytest.mark.parametrize("size", [32, 48, 64, 80])
def test_the_pipeline_is_that_of_torchvision_on_pillow(size, kind):
    frames = pictures(2, 90, 120)
    found = normalised(centre_crop(channels_first(resized_squares(frames, size)), size), kind)
    mean, deviation = NORMALISATIONS[kind]
    side = int(1.2 * size)
    pipeline = v2.Compose(
        [
            v2.Resize((side, side), interpolation=v2.InterpolationMode.BILINEAR),
            v2.CenterCrop(size),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, deviation),
        ]
    )
    expected = torch.stack([pipeline(Image.fromarray(frame)) for frame in frames])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_the_sizes_of_the_released_configuration():
    assert resized_side(224) == 268
    video = torch.arange(268).expand(1, 3, 268, 268)
    assert centre_crop(video, 224)[0, 0, 0, 0] == 22


def test_a_floating_video_is_normalised_already():
    video = torch.randn(2, 3, 4, 4)
    assert normalised(video) is video


def marked(side: int) -> torch.Tensor:
    """Two frames whose pixels say where they come from: row in red, column in green, frame in blue."""
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    frames = [torch.stack([row, column, torch.full_like(row, number)]) for number in range(2)]
    return torch.stack(frames).to(torch.uint8)


def test_a_crop_is_at_one_place_for_all_frames_and_every_place_is_as_likely():
    random.seed(0)
    seen: Counter[tuple[int, int]] = Counter()
    for _ in range(4000):
        video = random_crop(marked(6), 4)
        top, left = video[0, :2, 0, 0].tolist()
        assert torch.equal(video[:, :2], marked(6)[:, :2, top : top + 4, left : left + 4])
        assert video[:, 2].unique().tolist() == [0, 1]
        seen[top, left] += 1
    assert set(seen) == {(top, left) for top in range(3) for left in range(3)}
    assert all(abs(count - 4000 / 9) < 5.5 * (4000 * 8 / 81) ** 0.5 for count in seen.values())


def test_no_augmentation_is_the_centre():
    assert torch.equal(augment(marked(6), 4, "none"), centre_crop(marked(6), 4))


def test_strong_augmentation_mirrors_and_scales_and_changes_colours_in_all_frames_alike():
    """Two equal frames stay equal; over many clips there are mirrored, plain, larger and recoloured ones."""
    base = marked(60)[:1].repeat(2, 1, 1, 1)
    plain, mirrored, recoloured, steps = 0, 0, 0, set()
    for seed in range(60):
        random.seed(seed)
        torch.manual_seed(seed)
        video = augment(base, 50, "strong")
        assert video.shape == (2, 3, 50, 50)
        assert video.dtype == torch.uint8
        assert torch.equal(video[0], video[1])
        slope = int(video[0, 1, 25, 49]) - int(video[0, 1, 25, 0])
        if video[0, 2].any():
            recoloured += 1
        elif slope > 0:
            plain += 1
            steps.add(slope)
        elif slope < 0:
            mirrored += 1
    assert plain > 10
    assert mirrored > 10
    assert recoloured > 2
    assert len(steps) > 3


def test_strong_augmentation_repeats_for_a_seed():
    clips = []
    for _ in range(2):
        random.seed(4)
        torch.manual_seed(4)
        clips.append(augment(marked(60), 50, "strong"))
    assert torch.equal(*clips)


# Drawn frames


class Pool:
    def frames(self, key: str) -> np.ndarray:
        return np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1)


def test_frames_are_drawn_from_those_of_a_pool():
    def ends(total: int, count: int) -> tuple[int, ...]:
        assert (total, count) == (6, 2)
        return (0, random.choice((4, 5)))

    source = Drawn(Pool(), ends, 2)
    seen = {tuple(source.frames("any").ravel().tolist()) for _ in range(50)}
    assert seen == {(0, 4), (0, 5)}


def test_seeded_draws_leave_the_generator_as_it_was():
    random.seed(1)
    expected = [random.random() for _ in range(2)]
    random.seed(1)
    first = random.random()
    with draws(7):
        one = random.random()
    with draws(7):
        assert random.random() == one
    assert [first, random.random()] == expected
