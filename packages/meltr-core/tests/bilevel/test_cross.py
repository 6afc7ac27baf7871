"""Outer steps on two halves of a batch, and the moving average of g."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bilevel_cases import Recorder, estimator_of, flat
from meltr import Bilevel, LossTransformer, sensitivities

ESTIMATORS = ["auto", "forward", "per_task", "one_sided", "difference", "double_backward"]


class Regression(nn.Module):
    """Three losses of one linear layer on eight examples; a closed-form Jacobian."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(8, 4, generator=generator, dtype=torch.float64)
        self.y = torch.randn(8, 3, generator=generator, dtype=torch.float64)
        self.w = nn.Parameter(torch.randn(4, generator=generator, dtype=torch.float64))

    def losses(self, rows: slice):
        return ((self.x[rows] @ self.w)[:, None] - self.y[rows]).square().mean(0) / 2

    def jacobian(self, rows: slice) -> torch.Tensor:
        error = (self.x[rows] @ self.w.detach())[:, None] - self.y[rows]
        return error.T @ self.x[rows] / len(error)


FIRST, SECOND = slice(0, 4), slice(4, 8)


def made(estimator: str = "forward", **settings):
    torch.manual_seed(1)
    model, m = Regression(), LossTransformer(3, width=8, heads=2, start="random").double()
    return model, m, Bilevel(model, m, Recorder(m.parameters()), estimator=estimator_of(estimator), **settings)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("parts", [2, 4])
def test_v_comes_from_one_half_and_j_from_the_other(estimator, parts):
    model, m, bilevel = made(estimator, gamma=0.0)
    size = 8 // parts
    compute = [lambda start=start: model.losses(slice(start, start + size)) for start in range(0, 8, size)]
    result = bilevel.backward(compute, outer=True, cross=True)
    expected = model.jacobian(SECOND) @ model.jacobian(FIRST)[0]
    torch.testing.assert_close(result.outer.products, expected, rtol=1e-6, atol=1e-9)
    whole = model.losses(slice(None)).detach()
    torch.testing.assert_close(result.losses, whole, rtol=1e-12, atol=0)
    _, a = sensitivities(m, whole)
    torch.testing.assert_close(model.w.grad, a @ model.jacobian(slice(None)), rtol=1e-10, atol=1e-12)


def test_without_an_outer_step_it_is_gradient_accumulation():
    model, m, bilevel = made()
    bilevel.backward([lambda: model.losses(FIRST), lambda: model.losses(SECOND)], outer=False, cross=True)
    _, a = sensitivities(m, model.losses(slice(None)).detach())
    torch.testing.assert_close(model.w.grad, a @ model.jacobian(slice(None)), rtol=1e-10, atol=1e-12)


def test_it_is_unbiased_where_a_shared_batch_is_not():
    """Over draws of the examples, g_0 of halves, v_1 v_2, means |E v|^2; that of a shared batch, |v|^2, is more."""
    model, _, bilevel = made("per_task", gamma=0.0)
    generator = torch.Generator().manual_seed(3)
    crossed, shared = [], []
    for number in range(300):
        order = torch.randint(0, 8, (8,), generator=generator)
        one, other, both = (model.jacobian(rows)[0] for rows in (order[:4], order[4:], order))
        crossed.append(one @ other)
        shared.append(both.square().sum())
        if number < 12:  # the others are what the formulas say
            halves = [lambda rows=rows: model.losses(rows) for rows in (order[:4], order[4:])]
            found = bilevel.backward(halves, outer=True, cross=True).outer.products[0]
            torch.testing.assert_close(found, crossed[-1], rtol=1e-10, atol=1e-12)
            found = bilevel.backward(halves, outer=True).outer.products[0]
            torch.testing.assert_close(found, shared[-1], rtol=1e-10, atol=1e-12)
    truth = model.jacobian(slice(None))[0].square().sum()
    crossed, shared = torch.stack(crossed), torch.stack(shared)
    error = crossed.std() / len(crossed) ** 0.5
    assert abs(crossed.mean() - truth) < 3 * error
    assert shared.mean() - truth > 5 * shared.std() / len(shared) ** 0.5


def test_an_odd_number_of_micro_batches_is_refused():
    model, _, bilevel = made()
    with pytest.raises(ValueError, match="even number"):
        bilevel.backward([lambda: model.losses(FIRST)] * 3, outer=True, cross=True)


def test_the_average_is_that_of_the_formula_and_part_of_the_state():
    model, m, plain = made("per_task")
    averaged = Bilevel(model, m, Recorder(m.parameters()), estimator=estimator_of("per_task"), average=0.7)
    own = []
    for number in range(4):
        rows = slice(2 * number, 2 * number + 2)
        own.append(plain.backward(lambda rows=rows: model.losses(rows), outer=True).outer.products)
        found = averaged.backward(lambda rows=rows: model.losses(rows), outer=True).outer
        weights = torch.tensor([0.7 ** (number - i) for i in range(number + 1)], dtype=torch.float64)
        expected = (weights[:, None] * torch.stack(own)).sum(0) / weights.sum()
        torch.testing.assert_close(found.products, expected, rtol=1e-12, atol=0)
        _, a = sensitivities(m, model.losses(rows).detach(), create_graph=True)
        phi = torch.autograd.grad(-(a * expected).sum(), list(m.parameters()), allow_unused=True)
        torch.testing.assert_close(flat(averaged.outer_optimizer.seen), flat(phi), rtol=1e-8, atol=1e-12)
        fresh = Bilevel(model, m, Recorder(m.parameters()), estimator=estimator_of("per_task"), average=0.7)
        fresh.load_state_dict(averaged.state_dict())
        averaged = fresh


def test_a_g_that_is_not_finite_leaves_the_average_alone():
    model, m, _ = made()
    averaged = Bilevel(model, m, Recorder(m.parameters()), estimator=estimator_of("per_task"), average=0.5)
    first = averaged.backward(lambda: model.losses(FIRST), outer=True).outer.products
    lost = averaged.backward(lambda: model.losses(FIRST) * torch.tensor(float("nan")), outer=True).outer
    assert not lost.applied
    again = averaged.backward(lambda: model.losses(FIRST), outer=True).outer.products
    torch.testing.assert_close(again, first)


@pytest.mark.parametrize("momentum", [-0.1, 1.0])
def test_a_momentum_out_of_range_is_refused(momentum):
    with pytest.raises(ValueError, match=r"average must be in \[0, 1\)"):
        made(average=momentum)
