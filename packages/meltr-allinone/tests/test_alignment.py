"""Word-patch alignment: against plain loops, marginals of the plan, and what gradients go through."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn import functional as F

from meltr_allinone.losses.alignment import alignment_distance, transport_plan


def case(seed: int = 0, *, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """Three pairs of at most 6 words and 9 patches, some of which take no part, the first among them."""
    generator = torch.Generator().manual_seed(seed)
    text_mask = torch.ones(3, 6, dtype=torch.bool)
    text_mask[0, 0] = text_mask[1, 3:] = False
    text_mask[2] = torch.arange(6) == 2
    video_mask = torch.ones(3, 9, dtype=torch.bool)
    video_mask[0, :2] = video_mask[1, 4] = False
    video_mask[2, ::2] = False
    return {
        "text": torch.randn(3, 6, 8, generator=generator, dtype=dtype),
        "video": torch.randn(3, 9, 8, generator=generator, dtype=dtype),
        "text_mask": text_mask,
        "video_mask": video_mask,
    }


def by_loops(words: list[list[float]], patches: list[list[float]], beta: float, iterations: int) -> float:
    """The distance of one pair, of the tokens that take part, one number at a time."""
    many, more = range(len(words)), range(len(patches))
    cost = [
        [
            1 - sum(x * y for x, y in zip(one, other, strict=True)) / math.hypot(*one) / math.hypot(*other)
            for other in patches
        ]
        for one in words
    ]
    plan = [[1.0 for _ in more] for _ in many]
    row, column = [1 / len(words) for _ in many], [0.0 for _ in more]
    for _ in range(iterations):
        q = [[math.exp(-cost[m][n] / beta) * plan[m][n] for n in more] for m in many]
        column = [1 / len(patches) / sum(q[m][n] * row[m] for m in many) for n in more]
        row = [1 / len(words) / sum(q[m][n] * column[n] for n in more) for m in many]
        plan = [[row[m] * q[m][n] * column[n] for n in more] for m in many]
    return sum(cost[m][n] * plan[m][n] for m in many for n in more)


@pytest.mark.parametrize(("beta", "iterations"), [(0.5, 50), (0.5, 1), (0.1, 7), (2.0, 20)])
def test_distance_is_that_of_plain_loops(beta, iterations):
    given = case()
    found = alignment_distance(**given, beta=beta, iterations=iterations)
    for number, distance in enumerate(found.tolist()):
        words = given["text"][number][given["text_mask"][number]].tolist()
        patches = given["video"][number][given["video_mask"][number]].tolist()
        assert distance == pytest.approx(by_loops(words, patches, beta, iterations), abs=1e-12)


def test_a_single_word_lies_at_the_mean_distance_of_the_patches():
    given = case()
    word, patches = given["text"][2, 2], given["video"][2][given["video_mask"][2]]
    expected = (1 - F.cosine_similarity(word[None], patches)).mean()
    torch.testing.assert_close(alignment_distance(**given)[2], expected)


def test_equal_sets_of_far_vectors_lie_at_no_distance():
    """The plan is then a permutation: every word goes to itself."""
    vectors = torch.eye(6, dtype=torch.float64)[None]
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    mask = torch.ones(1, 6, dtype=torch.bool)
    distance = alignment_distance(vectors, vectors[:, order], text_mask=mask, video_mask=mask, iterations=200)
    assert 0 <= float(distance) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_marginals_of_the_plan(dtype):
    given = case(dtype=dtype)
    cost = torch.rand(3, 6, 9, generator=torch.Generator().manual_seed(3), dtype=dtype)
    masks = {"text_mask": given["text_mask"], "video_mask": given["video_mask"]}
    plan = transport_plan(cost, **masks, iterations=3000)
    assert (plan >= 0).all()
    words, patches = (mask / mask.sum(1, keepdim=True) for mask in masks.values())
    torch.testing.assert_close(plan.sum(2), words.to(dtype), atol=1e-6, rtol=0)
    torch.testing.assert_close(plan.sum(1), patches.to(dtype), atol=1e-4, rtol=0)
    few = transport_plan(cost, **masks, iterations=1)
    torch.testing.assert_close(few.sum(2), words.to(dtype), atol=1e-6, rtol=0)


def test_no_plan_beats_the_plan_by_much():
    """The optimum of the transport problem, by linear programming."""
    optimize = pytest.importorskip("scipy.optimize")
    cost = torch.rand(1, 5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    masks = {"text_mask": torch.ones(1, 5, dtype=torch.bool), "video_mask": torch.ones(1, 7, dtype=torch.bool)}
    rows = torch.kron(torch.eye(5), torch.ones(1, 7))
    columns = torch.kron(torch.ones(1, 5), torch.eye(7))
    best = optimize.linprog(
        cost.flatten().numpy(),
        A_eq=torch.cat([rows, columns]).numpy(),
        b_eq=[1 / 5] * 5 + [1 / 7] * 7,
        method="highs",
    )
    found = float((cost * transport_plan(cost, **masks, iterations=2000)).sum())
    assert found == pytest.approx(best.fun, abs=1e-6)


@pytest.mark.parametrize("empty", ["text_mask", "video_mask"])
def test_nothing_to_align_is_no_distance(empty):
    given = case()
    given[empty][1] = False
    text = given["text"].requires_grad_()
    distance = alignment_distance(**given)
    assert distance[1] == 0
    assert (distance[[0, 2]] > 0).all()
    (gradient,) = torch.autograd.grad(distance.sum(), text)
    assert gradient.isfinite().all()
    assert not gradient[1].any()


def test_tokens_that_take_no_part_may_hold_anything():
    given = case()
    expected = alignment_distance(**given)
    for name in ("text", "video"):
        given[name] = torch.where(given[f"{name}_mask"][..., None], given[name], 1e6)
    torch.testing.assert_close(alignment_distance(**given), expected, atol=0, rtol=0)


def fixed_plan_distance(given, plan):
    words, patches = (F.normalize(given[name], dim=-1) for name in ("text", "video"))
    return ((1 - words @ patches.mT) * plan).sum((1, 2))


@pytest.fixture
def constant():
    """The case, its plan, and what the distance is as a function of the text if the plan is a constant."""
    given = case()
    words, patches = (F.normalize(given[name], dim=-1) for name in ("text", "video"))
    plan = transport_plan(1 - words @ patches.mT, text_mask=given["text_mask"], video_mask=given["video_mask"])
    return given, lambda text: fixed_plan_distance(given | {"text": text}, plan)


def test_gradients_go_through_the_cost_only(constant):
    given, fixed = constant
    text = given["text"].requires_grad_()
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    (found,) = torch.autograd.grad((alignment_distance(**given) * weights).sum(), text)
    (expected,) = torch.autograd.grad((fixed(text) * weights).sum(), text)
    torch.testing.assert_close(found, expected)
    assert found[given["text_mask"]].abs().max() > 1e-3


def test_forward_mode_agrees_and_so_do_second_derivatives(constant):
    given, fixed = constant
    text = given.pop("text")
    direction = torch.randn(text.shape, generator=torch.Generator().manual_seed(4), dtype=text.dtype)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(text, direction)
        _, found = forward_ad.unpack_dual(alignment_distance(dual, **given))
        _, expected = forward_ad.unpack_dual(fixed(dual))
    torch.testing.assert_close(found, expected)
    _, found = torch.func.jvp(lambda moved: alignment_distance(moved, **given), (text,), (direction,))
    torch.testing.assert_close(found, expected)
    found, expected = (
        torch.autograd.functional.hvp(lambda moved, of=of: of(moved).sum(), text, direction)[1]
        for of in (lambda moved: alignment_distance(moved, **given), fixed)
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_computed_in_float32(dtype):
    given = case(dtype=torch.float32)
    low = given | {name: given[name].to(dtype) for name in ("text", "video")}
    expected = alignment_distance(**low | {name: low[name].float() for name in ("text", "video")})
    assert expected.dtype == torch.float32
    assert torch.equal(alignment_distance(**low), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(alignment_distance(**low), expected)
