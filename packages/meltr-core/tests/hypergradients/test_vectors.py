"""Moving weights along a direction and back."""

from __future__ import annotations

import pytest
import torch

from meltr.autograd import vectors
from meltr.autograd.vectors import Combination, displaced, dot

STEPS = (0.1, -0.1, 0.01, -0.03)


def weights() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(3, 4), torch.randn(5), torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)]


@pytest.mark.parametrize("overwrite", [False, True])
def test_there_and_back(overwrite):
    w, q = weights(), [torch.randn(3, 4), None, torch.randn(2, 3, 4, 4)]
    before, kept = [p.clone() for p in w], [None if part is None else part.clone() for part in q]
    with displaced(w, q, overwrite=overwrite) as move:
        for e in STEPS:
            move(e)
            for p, start, part in zip(w, before, kept, strict=True):
                torch.testing.assert_close(p, start if part is None else start + e * part, rtol=0, atol=3e-7)
    assert all(torch.equal(p, start) for p, start in zip(w, before, strict=True))
    if not overwrite:
        assert all(a is None or torch.equal(a, b) for a, b in zip(q, kept, strict=True))


def test_directions_that_share_memory():
    """Autograd returns one gradient for both terms of a sum, and an expanded one for a sum over elements."""
    a, b, c = torch.zeros(4), torch.zeros(4), torch.zeros(4)
    gradient = torch.arange(4.0)
    with displaced([a, b, c], [gradient, gradient, torch.ones(1).expand(4)], overwrite=True) as move:
        move(0.5)
        assert torch.equal(a, 0.5 * torch.arange(4.0))
        assert torch.equal(b, 0.5 * torch.arange(4.0))
        assert torch.equal(c, torch.full((4,), 0.5))
    assert not torch.cat([a, b, c]).any()


def test_back_after_a_failure_and_without_a_move():
    (w, *_), q = weights(), [torch.ones(3, 4)]
    start = w.clone()
    with pytest.raises(RuntimeError), displaced([w], q) as move:  # noqa: PT012
        move(1.0)
        raise RuntimeError
    assert torch.equal(w, start)
    with displaced([w], q):
        pass
    assert torch.equal(w, start)
    with displaced([w], q) as move, pytest.raises(ValueError, match="displacement of 0"):
        move(0.0)
    assert torch.equal(w, start)


def test_a_graph_made_before_can_still_be_differentiated():
    w = torch.randn(4, requires_grad=True)
    loss = (w**3).sum()
    with displaced([w], [torch.ones(4)]) as move:
        move(1.0)
    (gradient,) = torch.autograd.grad(loss, w)
    torch.testing.assert_close(gradient, 3 * w.detach() ** 2)


def rows_with_gaps() -> tuple[list[list[torch.Tensor | None]], torch.Tensor, torch.Tensor]:
    """Rows in which a parameter is missing from the first, a later, or every one; weights; the rows as a matrix."""
    torch.manual_seed(0)
    a, b, c = torch.randn(3), torch.randn(3), torch.randn(2)
    rows, weights = [[a, None, None], [b, None, c], [None, None, c]], torch.tensor([2.0, -1.0, 0.5])
    zero = torch.zeros(2)
    dense = torch.stack([torch.cat([a, zero]), torch.cat([b, c]), torch.cat([0 * a, c])])
    return rows, weights, dense


def test_a_combination_is_the_product_with_the_jacobian():
    rows, weights, dense = rows_with_gaps()
    kept = [[None if part is None else part.clone() for part in row] for row in rows]
    found = Combination(weights, rows)
    first, second, third = found
    assert second is None
    assert [part is None for part in found[1:]] == [True, False]
    torch.testing.assert_close(torch.cat([first, third]), weights @ dense)
    torch.testing.assert_close(found.products(), (dense @ dense.T @ weights).double())
    assert all(
        x is y or torch.equal(x, y) for row, old in zip(rows, kept, strict=True) for x, y in zip(row, old, strict=True)
    )


def test_a_spent_combination_gives_the_same_and_lets_go_of_its_rows():
    rows, weights, dense = rows_with_gaps()
    parts = Combination(weights, rows).spend()
    first = next(parts)
    assert all(row[0] is None for row in rows), "the parts of the first parameter were used"
    assert rows[1][2] is not None, "those of the last one were not"
    _, third = parts
    torch.testing.assert_close(torch.cat([first, third]), weights @ dense)
    assert all(part is None for row in rows for part in row)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 32_768, 32_769, 100_003])
def test_inner_products_of_any_length_and_layout(size, dtype):
    """Against float64; bfloat16 products carry the type's own rounding."""
    torch.manual_seed(size)
    wide = torch.randn(size, 2, dtype=torch.float64)
    a, b = wide[:, 0].to(dtype), torch.randn(size, dtype=torch.float64).to(dtype)
    exact = (a.double() * b.double()).sum()
    scale = (a.double() * b.double()).abs().sum()
    tolerance = {torch.float32: 1e-7, torch.float64: 1e-15, torch.bfloat16: 4e-3}[dtype]
    assert abs(dot([a, None], [b, a]) - exact) <= tolerance * scale
    assert dot([a, None], [b, a]).dtype == torch.float64


@pytest.mark.parametrize("group", [1, 20, 10**6])
def test_parts_that_are_computed_together_are_those_computed_one_by_one(group, monkeypatch):
    """On a GPU parts are joined, so that few kernels are launched; here the same is done on the CPU."""
    monkeypatch.setattr(vectors, "_GROUP", group)
    a = torch.tensor([0.5, -2.0, 3.0])
    rows = [[*weights(), None, torch.randn(7), torch.randn(2)] for _ in a]
    rows[1][4] = None
    one_by_one = list(Combination(a, [list(row) for row in rows]).spend())
    monkeypatch.setattr(Combination, "_joins", lambda self, place: all(row[place] is not None for row in self.rows))
    spent = [list(row) for row in rows]
    for part, expected in zip(Combination(a, spent).spend(), one_by_one, strict=True):
        assert (part is None) == (expected is None)
        if part is not None:
            torch.testing.assert_close(part, expected)
    assert all(part is None for row in spent for part in row)
    joined = list(vectors._joined([(p, q) for p, q in zip(rows[0], rows[2], strict=True) if p is not None]))
    assert len(joined) == {1: 5, 20: 3, 10**6: 1}[group]
    total = sum(torch.sum(p.double() * q.double()) for p, q in joined)
    torch.testing.assert_close(total, dot(rows[0], rows[2]), rtol=1e-6, atol=0)
