"""What a combiner, a scheme or an estimator needs is checked where it matters, and an error or a warning names it."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from meltr import (
    ITD,
    SAMA,
    Auto,
    Bilevel,
    CentralDifference,
    DoubleBackward,
    ForwardMode,
    LossTransformer,
    OneSidedDifference,
    PerTask,
    UserError,
)
from meltr.combiners.base import GradientCombiner
from meltr.combiners.dwa import DynamicWeightAverage
from meltr.combiners.gradnorm import GradNorm
from meltr.combiners.uncertainty import UncertaintyCombiner

X, Y = torch.randn(12, 6, generator=torch.Generator().manual_seed(3)), torch.arange(12) % 3


def four(output: torch.Tensor) -> list[torch.Tensor]:
    return [F.cross_entropy(output, Y), output.square().mean(), output.abs().mean(), output.softmax(1).square().mean()]


def loop(model: nn.Module, **settings) -> Bilevel:
    torch.manual_seed(2)
    m = LossTransformer(4, width=8, heads=2, feedforward=8, scale_hidden=8, start="random")
    return Bilevel(model, m, torch.optim.SGD(m.parameters(), 1e-3), gamma=0.0, **settings)


class WithTarget(nn.Module):
    """A loss against a target that is computed from w without a gradient: only a backward pass is right."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)

    def losses(self) -> list[torch.Tensor]:
        output = self.fc(X)
        with torch.no_grad():
            target = self.fc(X + 0.5) * 3
        return [F.mse_loss(output, target), output.square().mean(), output.abs().mean(), output.mean().square()]


@pytest.mark.parametrize("estimator", [ForwardMode, CentralDifference, OneSidedDifference])
def test_a_named_estimator_is_checked_at_the_first_outer_step_and_warns(estimator):
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    weights = list(model.parameters())  # forward mode does not see weights that no attribute names

    def listed() -> list[torch.Tensor]:
        output = model(X)
        return [F.cross_entropy(output, Y) + sum(w.square().sum() for w in weights), *four(output)[1:]]

    other = WithTarget()
    bilevel = loop(model, estimator=estimator()) if estimator is ForwardMode else loop(other, estimator=estimator())
    compute = listed if estimator is ForwardMode else other.losses
    with pytest.warns(RuntimeWarning, match=r"% off.*estimator=auto"):
        bilevel.backward(compute, outer=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bilevel.backward(compute, outer=True)  # once


class Queue(nn.Module):
    """A queue of keys, which the weights make; it is empty at first, and then differences see it move."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)
        self.register_buffer("on", torch.zeros(()))

    def losses(self) -> list[torch.Tensor]:
        output = self.fc(X)
        found = (output - self.on * 3 * self.fc(X + 0.5).detach()).square().mean()
        self.on = torch.ones(())
        return [F.cross_entropy(output, Y), found, output.abs().mean(), output.mean().square()]


@pytest.mark.parametrize("estimator", [CentralDifference, OneSidedDifference])
def test_an_estimator_that_turns_out_to_be_wrong_is_exchanged_and_the_exchange_is_saved(estimator):
    torch.manual_seed(0)
    model = Queue()
    bilevel = loop(model, estimator=estimator())
    bilevel.backward(model.losses, outer=True)
    name = bilevel.estimator_in_use.name
    with pytest.warns(RuntimeWarning, match=r"% off.*estimator=auto"):
        found = bilevel.backward(model.losses, outer=True)
    exact = loop(model, estimator=PerTask()).backward(model.losses, outer=True)
    torch.testing.assert_close(found.outer.products, exact.outer.products, rtol=1e-5, atol=1e-8)
    resumed = loop(model, estimator=estimator())
    resumed.load_state_dict(bilevel.state_dict())
    assert [name, bilevel.estimator_in_use.name, resumed.estimator_in_use.name] == [estimator.name, *["per_task"] * 2]
    assert bilevel.estimator.name == estimator.name


@pytest.mark.parametrize("estimator", [ForwardMode, CentralDifference])
def test_a_right_estimator_does_not_warn_and_leaves_the_same(estimator):
    found = []
    for each in (estimator, PerTask):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 3))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = loop(model, estimator=each()).backward(lambda model=model: four(model(X)), outer=True)
        found.append((result.outer.products, [p.grad for p in model.parameters()], list(model.buffers())))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-4)


def test_an_estimator_that_checks_itself_is_checked_once(monkeypatch):
    passes = []
    exact = PerTask.__call__
    monkeypatch.setattr(PerTask, "__call__", lambda self, *rest: passes.append(1) or exact(self, *rest))
    model = nn.Linear(6, 3)
    bilevel = loop(model, estimator=OneSidedDifference())
    counts = []
    for _ in range(3):
        bilevel.backward(lambda: four(model(X)), outer=True)
        counts.append(len(passes))
    assert counts == [1, 2, 2]  # by itself at the first outer step, as every named estimator at the second


class Complex(nn.Module):
    """A layer with complex weights, or (`parts`) the same function of their real and imaginary parts."""

    def __init__(self, *, parts: bool) -> None:
        super().__init__()
        first = torch.randn(6, 3, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
        self.parts = parts
        self.w = nn.Parameter(torch.view_as_real(first).clone() if parts else first)

    def forward(self) -> torch.Tensor:
        z = X.to(torch.complex64) @ (torch.view_as_complex(self.w) if self.parts else self.w)
        return z.real + (z * z).imag / 4


@pytest.mark.parametrize("scheme", [None, ITD(step=0.1)])
@pytest.mark.parametrize(
    "estimator", [Auto, PerTask, ForwardMode, CentralDifference, OneSidedDifference, DoubleBackward]
)
def test_complex_weights_are_trained_as_their_two_parts(estimator, scheme):
    results = []
    for parts in (False, True):
        model = Complex(parts=parts)
        result = loop(model, estimator=estimator(), scheme=scheme).backward(
            lambda model=model: four(model()), outer=True
        )
        gradient = model.w.grad if parts else torch.view_as_real(model.w.grad)
        results.append((result.outer.products, gradient))
    tolerance = {"rtol": 1e-2, "atol": 1e-3} if estimator is CentralDifference else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(*(products for products, _ in results), **tolerance)
    torch.testing.assert_close(*(gradient for _, gradient in results), rtol=1e-4, atol=1e-6)


class Doubles(GradientCombiner):
    def from_gradients(self, losses, rows):
        return [2 * part for part in rows[0]], torch.tensor([2.0, 0.0, 0.0, 0.0])


def test_complex_weights_are_refused_by_name_where_they_are_not_supported():
    model = Complex(parts=False)
    with pytest.raises(UserError, match="Doubles needs real gradients"):
        Bilevel(model, Doubles(["a", "b", "c", "d"])).backward(lambda: four(model()))
    bilevel = loop(model, scheme=SAMA(), inner_optimizer=torch.optim.Adam(model.parameters()))
    with pytest.raises(UserError, match="complex"):
        bilevel.backward(lambda: four(model()), outer=True)


def test_a_parameter_that_is_stored_sparse_is_refused():
    model = nn.Module()
    model.w = nn.Parameter(torch.eye(6)[:3].to_sparse())
    with pytest.raises(UserError, match=r"\(3, 6\), is stored sparse"):
        loop(model).backward(lambda: four(torch.sparse.mm(model.w, X.T).T), outer=True)


@pytest.mark.parametrize("scheme", [ITD(), SAMA()])
def test_an_optimiser_without_a_rate_is_named(scheme):
    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    optimizer.param_groups[0]["lr"] = None  # as in transformers' Adafactor, which chooses its own rates
    with pytest.raises(UserError, match=r"SGD has lr=None.*\n.*step"):
        loop(model, scheme=scheme, inner_optimizer=optimizer).backward(lambda: four(model(X)), outer=True)


def test_an_outer_optimiser_that_needs_several_gradients_is_refused():
    m = LossTransformer(2, width=8, heads=2, feedforward=8, scale_hidden=8)
    with pytest.raises(UserError, match="LBFGS"):
        Bilevel(nn.Linear(2, 1), m, torch.optim.LBFGS(m.parameters()))


def test_an_outer_optimiser_that_ascends_is_refused():
    m = LossTransformer(2, width=8, heads=2, feedforward=8, scale_hidden=8)
    with pytest.raises(UserError, match=r"Adam with maximize=True"):
        Bilevel(nn.Linear(2, 1), m, torch.optim.Adam(m.parameters(), maximize=True))


def test_an_outer_optimiser_that_got_other_tensors_later_is_refused():
    model, other = nn.Linear(6, 3), nn.Parameter(torch.ones(2), requires_grad=True)
    bilevel = loop(model)
    bilevel.backward(lambda: four(model(X)), outer=True)
    bilevel.outer_optimizer.add_param_group({"params": [other]})
    with pytest.raises(UserError, match="holds 1 tensors that are not parameters of the combiner"):
        bilevel.backward(lambda: four(model(X)), outer=True)


def test_phi_that_is_unfrozen_later_must_be_in_the_outer_optimiser():
    model = nn.Linear(6, 3)
    m = LossTransformer(4, width=8, heads=2, feedforward=8, scale_hidden=8)
    first, *rest = m.parameters()
    first.requires_grad_(False)
    bilevel = Bilevel(model, m, torch.optim.SGD(rest, 1.0), gamma=0.0)
    bilevel.backward(lambda: four(model(X)), outer=True)
    first.requires_grad_(True)
    with pytest.raises(UserError, match="misses 1 parameters"):
        bilevel.backward(lambda: four(model(X)), outer=True)
    bilevel.outer_optimizer.add_param_group({"params": [first], "lr": 1.0})
    before = first.detach().clone()
    bilevel.backward(lambda: four(model(X)), outer=True)
    assert not torch.equal(first.detach(), before)


def line_search(bilevel: Bilevel, model: nn.Module, **words) -> list[torch.Tensor]:
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4, line_search_fn="strong_wolfe")
    combined = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        combined.append(bilevel.backward(lambda: four(model(X)), **words).combined)
        return combined[-1]

    optimizer.step(closure)
    return combined


def test_the_combiner_is_not_trained_within_a_line_search():
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    with pytest.raises(UserError, match=r"closure of LBFGS.*\n.*outer=False"):
        line_search(loop(model), model)
    m = UncertaintyCombiner(4)
    with pytest.raises(UserError, match="closure of LBFGS"):
        line_search(Bilevel(model, m, torch.optim.SGD(m.parameters(), 0.1)), model)
    bilevel = loop(model)
    found = line_search(bilevel, model, outer=False)
    assert len(found) > 2
    assert found[-1] < found[0]  # one and the same loss all along
    assert bilevel.outer_step(lambda: four(model(X)), lambda: four(model(X))).finite
    optimizer = torch.optim.SGD(model.parameters(), 0.1)  # its step calls a closure once
    optimizer.step(lambda: bilevel.backward(lambda: four(model(X))).combined)


class NoRule(torch.autograd.Function):
    """An operation without a forward mode, such as DistributedDataParallel's that finds unused parameters."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def test_a_named_estimator_that_cannot_is_refused():
    model = nn.Linear(6, 3)
    bilevel = loop(model, estimator=ForwardMode())
    with pytest.raises(NotImplementedError, match="estimator=forward cannot evaluate these losses: You must") as caught:
        bilevel.backward(lambda: four(NoRule.apply(model(X))), outer=True)
    assert "per_task" in str(caught.value)


@pytest.mark.parametrize("combiner", [UncertaintyCombiner, GradNorm, DynamicWeightAverage])
def test_losses_that_become_negative_are_named(combiner):
    model, shift = nn.Linear(6, 3), [0.0]
    m = combiner(["ce", "size"])
    parameters = list(m.parameters())
    optimizer = torch.optim.SGD(parameters, 1e-3) if parameters else None
    bilevel = Bilevel(model, m, optimizer)

    def step() -> None:
        bilevel.backward(lambda: [F.cross_entropy(model(X), Y), model(X).square().mean() - shift[0]])
        m.end_epoch()

    step()
    shift[0] = 10.0
    with pytest.raises(UserError, match="must not be negative, but size = -"):
        step()
