"""What is hidden: the law of the draws against plain rejection, and the edges where the released loader never ends."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from meltr.metrics.classification import IGNORED
from meltr_univl.losses.masking import draw_masks, draw_places

MANY = 40_000


def rows(*lengths: int) -> tuple[Tensor, Tensor]:
    """Texts of so many tokens, [CLS] and [SEP] included, and their masks."""
    width = max(lengths)
    ids = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.arange(104, 104 + length)
        ids[row, 0], ids[row, length - 1] = 101, 102
    return ids, (ids > 0).long()


def test_the_law_is_that_of_drawing_again_until_something_is_chosen() -> None:
    """All 15 outcomes for four places: p^k q^(n-k) / (1 - q^n)."""
    able = torch.ones(MANY, 6, dtype=torch.bool)
    able[:, 1], able[:, 4] = False, False
    chosen = draw_places(able, generator=torch.Generator().manual_seed(0), probability=0.3)
    assert not chosen[:, [1, 4]].any()
    assert chosen.any(1).all()
    numbers = (chosen[:, [0, 2, 3, 5]].long() * torch.tensor([8, 4, 2, 1])).sum(1)
    counts = torch.bincount(numbers, minlength=16).double()
    squared = 0.0
    for outcome in product((0, 1), repeat=4):
        hits, number = sum(outcome), int("".join(map(str, outcome)), 2)
        expected = MANY * (0.3**hits * 0.7 ** (4 - hits)) / (1 - 0.7**4) if hits else 0.0
        if expected:
            squared += (float(counts[number]) - expected) ** 2 / expected
    assert counts[0] == 0
    assert squared < 36.1  # chi-square with 14 degrees of freedom, 99.9 %


@pytest.mark.parametrize(("probability", "expected"), [(0.0, 0.0), (1.0, 1.0)])
def test_never_and_always(probability: float, expected: float) -> None:
    able = torch.ones(5, 7, dtype=torch.bool)
    chosen = draw_places(able, generator=None, probability=probability)
    assert float(chosen.float().mean()) == expected
    able[0], able[1, ::2] = False, False
    assert torch.equal(draw_places(able, generator=None, probability=probability), able & bool(expected))


def test_a_small_probability_hides_one_place_anywhere() -> None:
    """Given that one is chosen, it is the only one almost always, and each place is as likely."""
    able = torch.ones(MANY, 5, dtype=torch.bool)
    able[:, 3] = False
    chosen = draw_places(able, generator=torch.Generator().manual_seed(5), probability=1e-6)
    assert (chosen.sum(1) == 1).all()
    torch.testing.assert_close(chosen.double().mean(0), 0.25 * able[0].double(), atol=0.012, rtol=0)


def test_without_the_promise_places_are_independent() -> None:
    able = torch.ones(MANY, 2, dtype=torch.bool)
    chosen = draw_places(
        able, generator=torch.Generator().manual_seed(1), probability=0.15, at_least_one=False
    ).double()
    assert float(chosen.mean()) == pytest.approx(0.15, abs=0.006)
    assert float((chosen[:, 0] * chosen[:, 1]).mean()) == pytest.approx(0.0225, abs=0.004)


def test_a_row_without_places_loses_nothing() -> None:
    ids, mask = rows(2, 3, 6)
    videos = torch.tensor([[0, 0, 0], [1, 0, 0], [1, 1, 1]])
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        masks = draw_masks(ids, mask, videos, vocabulary=200, generator=generator)
        assert torch.equal(masks.ids[0], ids[0])
        assert (masks.labels[0] == IGNORED).all()
        assert masks.labels[1].tolist()[:3] == [IGNORED, 105, IGNORED]  # the only word is always chosen
        assert masks.frames[0].tolist() == [False] * 3
        assert masks.frames[1].tolist() == [True, False, False]
        assert (masks.labels[2] != IGNORED).any()
        assert masks.frames[2].any()


def test_frames_and_labels_keep_what_was_there() -> None:
    ids, mask = rows(*[12] * 3000)
    masks = draw_masks(ids, mask, torch.ones(3000, 2), vocabulary=1000, generator=torch.Generator().manual_seed(3))
    chosen = masks.labels != IGNORED
    assert torch.equal(masks.labels[chosen], ids[chosen])
    assert torch.equal(masks.ids[~chosen], ids[~chosen])
    assert not chosen[:, [0, 11]].any()
    hidden = masks.ids[chosen]
    assert float((hidden == 103).double().mean()) == pytest.approx(0.8, abs=0.02)
    assert float((hidden == ids[chosen]).double().mean()) == pytest.approx(0.1, abs=0.02)
    assert int(hidden.max()) > 900


def test_a_replayed_generator_gives_the_same() -> None:
    ids, mask = rows(6, 9)
    first, second = (
        draw_masks(ids, mask, torch.ones(2, 4), vocabulary=99, generator=torch.Generator().manual_seed(7))
        for _ in range(2)
    )
    assert torch.equal(first.ids, second.ids)
    assert torch.equal(first.frames, second.frames)
