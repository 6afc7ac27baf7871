"""g = J q and the outer gradient, against closed forms, dense float64 references and the released formula."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bilevel_cases import (
    ESTIMATORS,
    RELATIVE,
    ConvNet,
    Encoder,
    Quadratic,
    Recorder,
    build,
    estimator_of,
    flat,
    released_way,
    take,
)
from meltr import Bilevel, LinearCombiner, LossTransformer
from meltr.autograd.graph import shared_backwards
from meltr.errors import UserError


@pytest.mark.parametrize("direct_term", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 0.3])
@pytest.mark.parametrize("kind", [ConvNet, Encoder])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_outer_gradient_equals_the_released_formula(kind, estimator, gamma, direct_term):
    model, m = build(kind)
    before = copy.deepcopy(model.state_dict())
    expected = flat(released_way(model, m, gamma=gamma, direct_term=direct_term))
    model.load_state_dict(before)
    _, found, _ = take(model, m, estimator, gamma=gamma, direct_term=direct_term)
    assert (flat(found) - expected).norm() <= RELATIVE[estimator] * expected.norm()


@pytest.mark.parametrize("kind", [ConvNet, Encoder])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_outer_step_leaves_weights_buffers_and_generators_as_one_forward_does(kind, estimator):
    model, m = build(kind)
    plain = copy.deepcopy(model)
    torch.manual_seed(7)
    plain.losses()
    expected_draw = torch.rand(4)
    take(model, m, estimator)
    assert torch.equal(torch.rand(4), expected_draw)
    for (name, one), other in zip(model.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("kind", [ConvNet, Encoder])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_inner_gradient_is_that_of_the_unified_loss(kind, estimator):
    """Also on the graph that the outer step has used."""
    model, m = build(kind)
    plain = copy.deepcopy(model)
    torch.manual_seed(7)
    m(torch.stack(list(plain.losses().values()))).backward()
    _, _, found = take(model, m, estimator)
    expected = [p.grad for p in plain.parameters() if p.requires_grad]
    assert [g is None for g in found] == [g is None for g in expected]
    assert (flat(found) - flat(expected)).norm() <= 1e-5 * flat(expected).norm()
    assert all(p.grad is None for p in plain.parameters() if not p.requires_grad)


@pytest.mark.parametrize("gamma", [0.0, 0.5])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_quadratic_problem_closed_form(estimator, gamma):
    model, m = Quadratic(), LinearCombiner(3, start_weight=0.75, positive=False).double()
    jacobian = torch.einsum("tij,tj->ti", model.a, (model.w - model.c).detach())
    a, losses = torch.full((3,), 0.75, dtype=torch.float64), model.losses().detach()
    c = torch.tensor([1.0, 0, 0], dtype=torch.float64) + gamma * torch.sign((a * losses).sum() - losses.sum()) * (a - 1)
    g = jacobian @ (jacobian.T @ c)
    result, (found,), (inner,) = take(model, m, estimator, gamma=gamma)
    tolerance = 1e-8 if estimator == "difference" else 1e-12
    torch.testing.assert_close(result.outer.products, g, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found, -g, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(inner, jacobian.T @ a, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_regulariser_at_its_kink_has_subgradient_zero(estimator):
    model, m = Quadratic(), LinearCombiner(3, start_weight=1.0, positive=False).double()
    with_regulariser, _, _ = take(model, m, estimator, gamma=5.0)
    without, _, _ = take(model, m, estimator, gamma=0.0)
    torch.testing.assert_close(with_regulariser.outer.products, without.outer.products)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_no_primary_gradient_means_no_outer_gradient(estimator):
    model = Quadratic()
    with torch.no_grad():
        model.w.copy_(model.c[0])
    m = LinearCombiner(3, start_weight=0.75, positive=False).double()
    result, (found,), _ = take(model, m, estimator, gamma=0.0)
    assert result.outer.applied
    assert found.abs().max() == 0


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_primary_loss_on_another_batch(estimator):
    """Held out or replayed: v from one batch, J from another, the regulariser from the second."""
    model, m = Quadratic(), LinearCombiner(3, start_weight=0.75, positive=False).double()
    other = torch.arange(6, dtype=torch.float64)
    jacobian = torch.einsum("tij,tj->ti", model.a, (model.w - model.c).detach())
    a, losses = torch.full((3,), 0.75, dtype=torch.float64), model.losses().detach()
    v = (model.w.detach() - other) + 0.5 * torch.sign((a * losses - losses).sum()) * (jacobian.T @ (a - 1))
    expected = jacobian @ v
    for shared in (True, False):
        bilevel = Bilevel(model, m, Recorder(m.parameters()), estimator=estimator_of(estimator), gamma=0.5)

        def primary() -> torch.Tensor:
            return (model.w - other).square().sum() / 2

        if shared:
            outer = bilevel.backward(model.losses, primary=primary, outer=True).outer
        else:
            outer = bilevel.outer_step(primary, model.losses)
        torch.testing.assert_close(outer.products, expected, rtol=1e-8, atol=1e-8)


def test_not_finite_outer_step_is_left_out():
    model, m = Quadratic(), LinearCombiner(3, positive=False).double()
    lines: list[str] = []
    optimizer = torch.optim.Adam(m.parameters(), 0.1)
    bilevel = Bilevel(model, m, optimizer, estimator=estimator_of("per_task"), log=lines.append)
    weights = m.raw.detach().clone()
    bilevel.backward(lambda: model.losses() * torch.tensor([1.0, 1.0, float("inf")]), outer=True)
    assert torch.equal(m.raw, weights)
    assert "not finite" in lines[0]


def test_outer_steps_come_after_every_k_inner_steps():
    model, m = Quadratic(), LinearCombiner(3).double()
    bilevel = Bilevel(model, m, torch.optim.Adam(m.parameters(), 0.1), every=3)
    taken = [bilevel.backward(model.losses).outer is not None for _ in range(8)]
    assert taken == [False, False, False, True, False, False, True, False]


def test_auto_uses_forward_mode_where_it_works_and_says_why():
    model, m = build(Encoder)
    lines: list[str] = []
    bilevel = Bilevel(model, m, Recorder(m.parameters()), log=lines.append)
    bilevel.backward(model.losses, outer=True)
    assert bilevel.estimator.chosen == "forward"
    assert "forward mode works" in lines[0]


def test_auto_falls_back_where_an_operation_has_no_forward_mode():
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, gradient):
            return 3 * ctx.saved_tensors[0] ** 2 * gradient

    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    inputs = torch.randn(8, 4)
    lines: list[str] = []
    m = LossTransformer(4, width=16, heads=2, start="random")
    bilevel = Bilevel(model, m, Recorder(m.parameters()), log=lines.append)

    def losses() -> torch.Tensor:
        return Cube.apply(model(inputs)).square().mean(0)

    first = bilevel.backward(losses, outer=True).outer.products
    assert bilevel.estimator.chosen == "difference"
    assert "no forward mode" in lines[0]
    second = bilevel.backward(losses, outer=True).outer.products
    assert (first - second).norm() <= 2e-3 * first.norm()


def test_auto_takes_task_gradients_where_losses_have_passes_of_their_own():
    """Losses that share only the weights: three backwards cost what one does; sharing everything, three times that."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(4, 8), *(nn.Sequential(nn.ReLU(), nn.Linear(8, 8)) for _ in range(8)))
    inputs = torch.randn(3, 16, 4)

    def apart() -> list[torch.Tensor]:
        return [body(each).square().mean() for each in inputs]

    def together() -> list[torch.Tensor]:
        hidden = body(inputs[0])
        return [hidden.mean(), hidden.square().mean(), hidden.exp().mean()]

    assert shared_backwards(apart()) == 1
    assert 2 < shared_backwards(together()) <= 3
    for losses, expected in ((apart, "per_task"), (together, "forward")):
        m = LossTransformer(3, width=16, heads=2, start="random")
        bilevel = Bilevel(body, m, Recorder(m.parameters()))
        bilevel.backward(losses, outer=True)
        assert bilevel.estimator.chosen == expected


def test_auto_takes_task_gradients_with_two_losses():
    model, m = Quadratic(), LinearCombiner(2).double()
    bilevel = Bilevel(model, m, Recorder(m.parameters()))
    bilevel.backward(lambda: model.losses()[:2], outer=True)
    assert bilevel.estimator.chosen == "per_task"


@pytest.mark.parametrize("estimator", ["forward", "per_task"])
def test_bf16_autocast(estimator):
    model, m = build(ConvNet)
    exact, _, _ = take(copy.deepcopy(model), m, "double_backward")
    rounded, _, _ = take(model, m, estimator, autocast=torch.bfloat16)
    gap = (rounded.outer.products - exact.outer.products).norm() / exact.outer.products.norm()
    assert gap < 0.05


def test_learned_combiner_lowers_the_primary_loss_more_than_a_harmful_sum():
    """One auxiliary loss pulls away from the target: the outer loop must learn to turn it down."""

    def train(learn: bool) -> float:
        w = nn.Module()
        w.x = nn.Parameter(torch.zeros(2))
        m = LinearCombiner(2)
        bilevel = Bilevel(w, m, torch.optim.Adam(m.parameters(), 0.1) if learn else None, every=1)
        optimizer = torch.optim.SGD(w.parameters(), 0.1)
        for _ in range(200):
            optimizer.zero_grad()
            bilevel.backward(lambda: [(w.x - 1).square().sum(), (w.x + 3).square().sum()])
            optimizer.step()
        return (w.x - 1).square().sum().item()

    assert train(learn=True) < 0.1 * train(learn=False)


@pytest.mark.parametrize(
    ("losses", "error", "message"),
    [
        (lambda: {}, ValueError, "no losses"),
        (lambda: [torch.ones(2, requires_grad=True)], ValueError, "scalar"),
        (lambda: [1.0], ValueError, "scalar"),
        (lambda: 3.0, TypeError, "mapping"),
        (lambda: [torch.tensor(1.0), torch.tensor(2.0)], ValueError, "depends on a trainable parameter"),
    ],
)
def test_bad_losses_are_named(losses, error, message):
    with pytest.raises(error, match=message):
        Bilevel(nn.Linear(1, 1), LinearCombiner(2)).backward(losses)


def test_bad_settings_are_named():
    model, m = nn.Linear(1, 1), LinearCombiner(2)
    with pytest.raises(ValueError, match="every"):
        Bilevel(model, m, every=0)
    with pytest.raises(ValueError, match="gamma"):
        Bilevel(model, m, gamma=-1)
    with pytest.raises(ValueError, match="no trainable"):
        Bilevel(model.requires_grad_(False), m)
    with pytest.raises(UserError, match=r"must be a meltr.Estimator, got 'forward'") as raised:
        Bilevel(nn.Linear(1, 1), m, estimator="forward")
    assert "ForwardMode()" in raised.value.hint
    with pytest.raises(UserError, match=r"must be a meltr.Scheme, got 'aid-fp'") as raised:
        Bilevel(nn.Linear(1, 1), m, scheme="aid-fp")
    assert "AIDFP(" in raised.value.hint


class Constant(nn.Module):
    """A target that is made of w, but is a constant for the backward."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4))
        self.register_buffer("x", torch.randn(2, 16, 3))

    def losses(self) -> list[torch.Tensor]:
        if self.how == "detach":
            target = self.layers(self.x[1]).detach()
        else:
            with torch.no_grad():
                target = self.layers(self.x[1])
        found = self.layers(self.x[0])
        return [found.square().mean(), (found - target).square().mean(), (found * target).mean(), found.mean()]


@pytest.mark.parametrize(("how", "expected"), [("detach", "forward"), ("no_grad", "per_task")])
def test_auto_finds_an_estimator_that_knows_constants(how, expected):
    """Differences feel w in such a target; forward mode does under no_grad. Both would be 40 % off."""
    torch.manual_seed(0)
    model, lines = Constant(how), []
    m = LossTransformer(4, width=8, heads=2, start="random")
    exact, _, _ = take(model, m, "double_backward")
    bilevel = Bilevel(model, m, Recorder(m.parameters()), log=lines.append)
    for _ in range(2):
        products = bilevel.backward(model.losses, outer=True).outer.products
        assert bilevel.estimator.chosen == expected
        assert (products - exact.outer.products).norm() <= 1e-5 * exact.outer.products.norm()
    assert how == "detach" or "central differences are off by" in lines[0]
