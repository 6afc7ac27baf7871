"""One-sided differences: their value, their checks, and when ``auto`` takes them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bilevel_cases import ConvNet, Encoder, Recorder, estimator_of, take
from meltr import Bilevel, LossTransformer
from meltr.hypergradients.estimators import auto, one_sided
from meltr.hypergradients.estimators.one_sided import TOLERANCE


class Powers(nn.Module):
    """l_t(w) = sum(w^(t+1)): the one-sided difference along v = grad l_0 = 1 has a closed form."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(0.5, 1.5, 9, dtype=dtype))

    def losses(self) -> list[torch.Tensor]:
        return [self.w.sum(), (self.w**2).sum(), (self.w**3).sum(), (self.w**4).sum()]


def bilevel(model: nn.Module, estimator: str = "one_sided", **settings) -> Bilevel:
    torch.manual_seed(0)
    m = LossTransformer(4, width=8, heads=2).to(next(model.parameters()).dtype)
    return Bilevel(model, m, Recorder(m.parameters()), estimator=estimator_of(estimator), gamma=0.0, **settings)


def products(training: Bilevel, model: nn.Module) -> torch.Tensor:
    torch.manual_seed(7)
    return training.backward(model.losses, outer=True).outer.products


def test_closed_form_at_the_step_that_is_in_use():
    model = Powers()
    training = bilevel(model)
    exact = products(training, model)
    w, step = model.w.detach(), training.estimator.step
    torch.testing.assert_close(exact, torch.stack([(k * w ** (k - 1)).sum() for k in (1, 2, 3, 4)]))
    e = step / 3  # v is one everywhere: its length is sqrt(9)
    expected = torch.stack([((w + e) ** k - w**k).sum() / e for k in (1, 2, 3, 4)])
    found = products(training, model)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=0)
    assert (found - exact).norm() / exact.norm() == pytest.approx(training.estimator.error, rel=1e-3)


@pytest.mark.parametrize("kind", [ConvNet, Encoder])
def test_within_its_tolerance_and_without_a_trace(kind):
    """BatchNorm in training mode; dropout, tied, frozen and unused parameters."""
    torch.manual_seed(0)
    model = kind()
    m = LossTransformer(len(model.losses()), width=16, heads=2, start="random")
    exact, _, gradient = take(model, m, "double_backward", gamma=0.2)
    before = copy.deepcopy(model.state_dict())
    training = Bilevel(model, m, Recorder(m.parameters()), estimator=estimator_of("one_sided"), gamma=0.2)
    for _ in range(2):
        model.load_state_dict(before)
        model.zero_grad()
        found = products(training, model)
        assert (found - exact.outer.products).norm() <= TOLERANCE * exact.outer.products.norm()
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter.detach(), before[name])
        for own, other in zip(training.parameters, gradient, strict=True):
            torch.testing.assert_close(own.grad, other, rtol=1e-4, atol=1e-6)


def test_one_forward_without_a_graph_between_checks():
    model, calls = Powers(), []
    training = bilevel(model)
    inner, model.losses = model.losses, lambda: calls.append(torch.is_grad_enabled()) or inner()
    counts = []
    for _ in range(one_sided.EARLY + 2):
        calls.clear()
        products(training, model)
        counts.append((calls.count(True), calls.count(False)))
    ordinary = counts.pop(1)
    assert ordinary == (1, 1)
    assert [number for number, each in enumerate(counts) if each != ordinary] == [0, one_sided.EARLY - 1]


class Drifting(nn.Module):
    """A target made of w that is meant as a constant, and that only counts once `weight` is on."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4))
        self.register_buffer("x", torch.randn(2, 16, 3))
        self.weight = 0.0

    def losses(self) -> list[torch.Tensor]:
        found, target = self.layers(self.x[0]), self.layers(self.x[1]).detach()
        return [
            found.square().mean(),
            (found - self.weight * target).square().mean(),
            (found * target).mean() * self.weight,
            found.mean(),
        ]


@pytest.fixture
def everything_is_large(monkeypatch):
    monkeypatch.setattr(auto, "LARGE", 0)


@pytest.mark.usefixtures("everything_is_large")
def test_auto_takes_it_for_large_models_and_leaves_it_when_a_check_fails():
    """Differences feel w in a detached target; the checks by one backward per task notice."""
    torch.manual_seed(0)
    model, lines = Drifting(), []
    training = bilevel(model, "auto", log=lines.append)
    products(training, model)
    assert training.estimator.chosen == "one_sided"
    model.weight = 1.0
    names = []
    for _ in range(one_sided.EARLY + 1):
        found = products(training, model)
        names.append(training.estimator.chosen)
    assert names[-2:] == [None, "forward"], names
    assert any("one_sided now has an error of" in line for line in lines)
    exact = products(bilevel(model, "double_backward"), model)
    assert (found - exact).norm() <= 1e-5 * exact.norm()


def test_auto_takes_an_exact_way_for_small_models():
    model = Drifting()
    training = bilevel(model, "auto")
    products(training, model)
    assert training.estimator.chosen == "forward"


@pytest.mark.usefixtures("everything_is_large")
def test_a_resumed_run_goes_on_with_the_same_step_and_checks():
    torch.manual_seed(0)
    model = Drifting()
    whole, first = bilevel(model, "auto"), bilevel(model, "auto")
    expected = [products(whole, model) for _ in range(one_sided.EARLY + 3)]
    for _ in range(4):
        products(first, model)
    second = bilevel(model, "auto")
    second.load_state_dict(first.state_dict())
    for wanted in expected[4:]:
        assert torch.equal(products(second, model), wanted)


def test_a_check_without_finite_losses_changes_nothing():
    model = Powers()
    training = bilevel(model)
    with torch.no_grad():
        model.w[0] = torch.inf
    assert not training.backward(model.losses, outer=True).outer.applied
    assert training.estimator.step is None
    with torch.no_grad():
        model.w[0] = 0.5
    assert products(training, model).isfinite().all()
    assert training.estimator.step is not None


def test_weights_below_float32_are_refused():
    model = Powers(torch.bfloat16)
    with pytest.raises(Exception, match="estimator=one_sided moves weights by less than bfloat16"):
        products(bilevel(model), model)


def test_a_user_who_asked_for_it_is_warned():
    torch.manual_seed(0)
    model = Drifting()
    model.weight = 1.0
    with pytest.warns(RuntimeWarning, match="one-sided difference is .*% off"):
        products(bilevel(model), model)
