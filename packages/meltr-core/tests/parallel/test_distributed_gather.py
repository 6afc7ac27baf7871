"""`meltr.parallel.gather.gather`: losses over the joined batch, with gradients by every mode of differentiation."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad, grad
from torch.nn import functional as F

from meltr.errors import MeltrError
from meltr.parallel.gather import gather, gather_in_turn, share_of
from ranks_helper import run_ranks

ROWS, WIDTH, SIZE = 3, 4, 2


def setting():
    """Return weights, a direction in their space, and two views of the joined batch."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return draw(WIDTH, 5), draw(WIDTH, 5), draw(SIZE * ROWS, WIDTH), draw(SIZE * ROWS, WIDTH)


def contrast(left, right, first=0):
    """InfoNCE of rows of `left`, which start at row `first` of `right`, against all rows of `right`."""
    logits = F.normalize(left, dim=1) @ F.normalize(right, dim=1).T / 0.3
    return F.cross_entropy(logits, torch.arange(first, first + len(left)))


def losses_of(weights, one, two, *, own_rows=False, rank=0):
    if own_rows:  # every process its own rows against all: the mean of the losses is the joined one
        return contrast(one @ weights, gather(two @ weights), rank * ROWS)
    return contrast(gather(one @ weights), gather(two @ weights))


def derivatives(weights, direction, loss):
    """Return value, gradient, directional derivative by forward mode and by its transpose twice, and H q."""
    weights = weights.clone().requires_grad_()
    value = loss(weights)
    (first,) = grad(value, weights, create_graph=True)
    (curvature,) = grad((first * direction).sum(), weights)
    with torch.no_grad(), forward_ad.dual_level():
        dual = forward_ad.make_dual(weights.detach(), direction)
        slope = forward_ad.unpack_dual(loss(dual)).tangent
    return {"value": value.detach(), "gradient": first.detach(), "slope": slope, "curvature": curvature}


def in_every_process(ranks):
    weights, direction, one, two = setting()
    part = slice(ranks.rank * ROWS, (ranks.rank + 1) * ROWS)
    found = {}
    for kind in (False, True):
        mine = derivatives(
            weights,
            direction,
            lambda w, kind=kind: losses_of(w, one[part], two[part], own_rows=kind, rank=ranks.rank),
        )
        found["own rows" if kind else "all rows"] = {
            "alone": mine["gradient"], **{name: ranks.mean(tensor) for name, tensor in mine.items()}
        }  # fmt: skip
    second = ranks.rank == 1
    unlike = {
        "rows": torch.zeros(3 if second else 2, 3),
        "turned": torch.zeros(2, 4, 3) if second else torch.zeros(2, 3, 4),
        "dimensions": torch.zeros(2, 3) if second else torch.zeros(2, 3, 1),
        "type": torch.zeros(2, dtype=torch.float64 if second else torch.float32),
        "scalar": torch.zeros(()),
    }
    for name, tensor in unlike.items():
        try:
            gather(tensor)
            found[name] = "accepted"
        except MeltrError as error:
            found[name] = str(error)
    found["labels"] = gather(torch.arange(2) + 2 * ranks.rank)
    return found


@pytest.fixture(scope="module")
def found():
    return [each.result for each in run_ranks(in_every_process)]


@pytest.mark.parametrize("kind", ["all rows", "own rows"])
@pytest.mark.parametrize("name", ["value", "gradient", "slope", "curvature"])
def test_averages_are_those_of_the_joined_batch(found, kind, name):
    weights, direction, one, two = setting()
    expected = derivatives(weights, direction, lambda w: contrast(one @ w, two @ w))[name]
    for process in found:
        torch.testing.assert_close(process[kind][name], expected, rtol=1e-10, atol=1e-12)


def test_without_averaging_a_process_has_its_own_share_only(found):
    for kind in ("all rows", "own rows"):
        assert not torch.allclose(found[0][kind]["alone"], found[1][kind]["alone"])


def test_integers_are_gathered_too(found):
    assert [process["labels"].tolist() for process in found] == [[0, 1, 2, 3]] * 2


@pytest.mark.parametrize("name", ["rows", "turned", "dimensions", "type", "scalar"])
def test_unlike_parts_are_refused_everywhere(found, name):
    for process in found:
        assert "equal parts of a batch" in process[name]
    assert "(2, 3)" in found[0]["rows"]
    assert "(3, 3)" in found[1]["rows"]


def test_a_single_process_gets_its_tensor_back():
    tensor = torch.ones(2, 3)
    assert gather(tensor) is tensor


def in_turn(ranks, *counts):
    """Return what each process gets for each number of items, and how many of them it computed."""
    found = []
    for count in map(int, counts):
        own = [(item, torch.full((2,), float(item))) for item in share_of(range(count), ranks.rank, ranks.size)]
        whole = gather_in_turn(own, ranks.size)
        found.append((len(own), [item for item, _ in whole], [float(value.sum()) for _, value in whole]))
    return found


def test_results_come_back_in_the_order_of_the_items():
    """Equal and unequal shares, and processes that have none."""
    counts = (6, 5, 1, 0)
    for rank, ended in enumerate(run_ranks(in_turn, words=counts)):
        for count, (own, items, sums) in zip(counts, ended.result, strict=True):
            assert own == (count + 1 - rank) // 2
            assert items == list(range(count))
            assert sums == [2.0 * item for item in range(count)]


def test_without_a_group_one_process_keeps_its_results():
    assert gather_in_turn([3, 1], 1) == [3, 1]
    assert list(share_of("abc", 0, 1)) == ["a", "b", "c"]
