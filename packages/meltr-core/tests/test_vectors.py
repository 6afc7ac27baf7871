"""Moving weights along a direction and back."""

from __future__ import annotations

import pytest
import torch

from meltr.hypergradients.vectors import displaced, weighted_sum

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


def test_a_weighted_sum_is_the_product_with_the_jacobian():
    """Gaps: a parameter that the first, a later, or no task depends on."""
    torch.manual_seed(0)
    a, b, c = torch.randn(3), torch.randn(3), torch.randn(2)
    rows, weights = [[a, None, None], [b, None, c], [None, None, c]], torch.tensor([2.0, -1.0, 0.5])
    kept = [[None if part is None else part.clone() for part in row] for row in rows]
    first, second, third = weighted_sum(weights, rows)
    torch.testing.assert_close(first, 2 * a - b)
    torch.testing.assert_close(third, -0.5 * c)
    assert second is None
    assert all(
        x is y or torch.equal(x, y) for row, old in zip(rows, kept, strict=True) for x, y in zip(row, old, strict=True)
    )
