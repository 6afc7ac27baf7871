from __future__ import annotations

import math

import pytest
import torch

from meltr.video.text.masking import choose, mask_out, normal_tokens
from meltr_violet.losses.masking import (
    attended_positions,
    black_out,
    code_targets,
    draw_cells,
    draw_masks,
    draw_tokens,
    masks_at,
)
from meltr_violet.losses.released import draw_columns, mask_choices

PAD, CLS, SEP, MASK = 0, 101, 102, 103


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def text(normal: int, length: int = 12) -> list[int]:
    return [CLS, *range(200, 200 + normal), SEP] + [PAD] * (length - normal - 2)


@pytest.mark.parametrize("normal", [1, 2, 5, 10])
def test_token_draw_is_bernoulli_given_at_least_one(normal):
    """The probability of each of the 2^n - 1 non-empty sets, against Bernoulli draws repeated while empty."""
    count, p = 40_000, 0.15
    chosen = draw_tokens(torch.tensor([text(normal)] * count), generator=generator())
    assert not chosen[:, 0].any()
    assert not chosen[:, normal + 1 :].any()
    patterns = chosen[:, 1 : normal + 1].long() @ (2 ** torch.arange(normal))
    assert int((patterns == 0).sum()) == 0
    for pattern, seen in zip(*patterns.unique(return_counts=True), strict=True):
        bits = int(pattern).bit_count()
        expected = count * p**bits * (1 - p) ** (normal - bits) / (1 - (1 - p) ** normal)
        assert abs(int(seen) - expected) < 5.5 * math.sqrt(expected) + 1
    rates = chosen[:, 1 : normal + 1].double().mean(0)
    torch.testing.assert_close(rates, torch.full_like(rates, p / (1 - (1 - p) ** normal)), atol=0.011, rtol=0)


def test_token_draw_without_the_condition():
    chosen = choose(normal_tokens(torch.tensor([text(10)] * 20_000)), generator=generator())
    assert float(chosen[:, 1:11].double().mean()) == pytest.approx(0.15, abs=0.003)
    assert float((~chosen.any(1)).double().mean()) == pytest.approx(0.85**10, abs=0.01)


def test_a_text_without_a_normal_token_is_left_alone():
    ids = torch.tensor([text(0), text(3)])
    masked, targets = mask_out(ids, draw_tokens(ids, generator=generator()))
    assert torch.equal(masked[0], ids[0])
    assert (targets[0] == -100).all()
    assert (targets[1] >= 0).any()


def test_masked_tokens_are_always_mask_and_their_targets_restore_the_text():
    ids = torch.tensor([text(n) for n in (1, 4, 10)])
    masked, targets = mask_out(ids, draw_tokens(ids, generator=generator(3)))
    assert torch.equal(masked == MASK, targets >= 0)
    assert torch.equal(torch.where(targets >= 0, targets, masked), ids)


@pytest.mark.parametrize("size", [(4, 5, 7, 7), (4, 1, 7, 7), (4, 4, 3, 3), (4, 2, 1, 2), (4, 6, 4, 9)])
def test_cells_are_a_union_of_blocks_within_the_bounds(size):
    _, frames, rows, columns = size
    cells = draw_cells((500, *size[1:]), generator=generator())
    assert cells.shape == (500, *size[1:])
    assert cells.flatten(1).any(1).all()
    assert cells.flatten(0, 1).any(0).all()  # every cell can be masked
    volumes = cells.flatten(1).sum(1)
    largest = max(1, frames - 1) * max(1, 2 * rows // 3 - 1) * max(1, 2 * columns // 3 - 1)
    assert int(volumes.max()) <= min(frames * largest, frames * rows * columns)


def test_one_block_of_one_frame_is_a_rectangle_of_uniform_size_and_place():
    cells = draw_cells((30_000, 1, 7, 7), generator=generator())[:, 0]
    heights, widths = cells.any(2).sum(1), cells.any(1).sum(1)
    assert torch.equal(cells.flatten(1).sum(1), heights * widths)
    for extent in (heights, widths):
        assert extent.bincount().tolist()[0] == 0
        torch.testing.assert_close(extent.bincount()[1:] / 30_000, torch.full((3,), 1 / 3), atol=0.015, rtol=0)
    tops = cells.any(2).int().argmax(1)
    for height in (1, 2, 3):
        places = tops[heights == height].bincount(minlength=8 - height) / (heights == height).sum()
        torch.testing.assert_close(places, torch.full((8 - height,), 1 / (8 - height)), atol=0.02, rtol=0)


def test_black_out_covers_exactly_the_cells():
    frames, cells = torch.full((1, 2, 3, 96, 64), 0.5), torch.zeros(1, 2, 3, 2, dtype=torch.bool)
    cells[0, 1, 2, 0] = True
    expected = frames.clone()
    expected[0, 1, :, 64:, :32] = 0
    assert torch.equal(black_out(frames, cells, 32), expected)
    assert torch.equal(black_out((frames * 255).byte(), cells, 32), (expected * 255).byte())


def test_code_targets_have_a_column_for_the_cls_of_each_frame():
    codes = torch.arange(8).view(1, 2, 2, 2)
    codes[0, 1, 1, 1] = -100
    cells = torch.tensor([[[[True, False], [False, True]], [[False, False], [True, True]]]])
    assert code_targets(codes, cells).tolist() == [[-100, 0, -100, -100, 3, -100, -100, -100, 6, -100]]


def test_draws_are_a_function_of_the_generator():
    ids = torch.tensor([text(8)] * 6)
    one, again, other = (draw_masks(ids, (6, 4, 3, 3), generator=generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.ids, again.ids)
    assert torch.equal(one.cells, again.cells)
    assert not torch.equal(one.cells, other.cells)
    before = torch.get_rng_state()
    draw_masks(ids, (6, 4, 3, 3), generator=generator())
    assert torch.equal(torch.get_rng_state(), before)


def test_attended_positions_follow_the_scores_and_spare_special_tokens():
    ids, frames, cells = torch.tensor([text(5)] * 2000), 2, 4
    length = frames * (1 + cells) + ids.shape[1]
    scores = torch.ones(len(ids), length)
    scores[:, 1], scores[:, [0, 5]] = 3.0, 100.0
    drawn = attended_positions(scores, ids, frames, generator=generator())
    assert drawn.shape == (2000, int(0.15 * length))
    assert all(len(set(row)) == len(row) for row in drawn[:50].tolist())
    seen = drawn.flatten().bincount(minlength=length)
    allowed = [1, 2, 3, 4, 6, 7, 8, 9, *(10 + i for i in range(1, 6))]
    assert int(seen.sum()) == int(seen[allowed].sum())
    assert int(seen[1]) > 2 * int(seen[2])
    masks = masks_at(drawn, ids, (2000, 2, 2, 2))
    hits = masks.cells.flatten(1).sum(1) + (masks.text_targets >= 0).sum(1)
    assert (hits == drawn.shape[1]).all()
    assert torch.equal(masks.ids == MASK, masks.text_targets >= 0)


def test_released_masking_of_choices():
    """One hit: all tokens masked, the text as target. Two: [MASK] as target. No normal token hit: left alone."""
    ids = torch.tensor([[text(2, 6), text(1, 6), text(3, 6)]])
    columns = torch.tensor([[True, False, True, False, False, False]])
    masked, targets = mask_choices(ids, columns)
    assert masked.tolist() == [[[MASK] * 6, text(1, 6), [MASK] * 6]]
    assert targets.tolist() == [[text(2, 6), [-100] * 6, text(3, 6)]]
    _, twice = mask_choices(ids, torch.tensor([[False, True, True, False, False, False]]))
    assert twice.tolist() == [[[MASK] * 6, text(1, 6), [MASK] * 6]]
    for seed in range(20):
        drawn = draw_columns(ids.expand(50, 3, 6), generator=generator(seed))
        assert (drawn[:, None] & normal_tokens(ids)).flatten(1).any(1).all()
