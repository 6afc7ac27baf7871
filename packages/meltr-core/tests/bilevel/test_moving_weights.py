"""Weights that the losses themselves change, and graphs that outer steps cannot differentiate: right, or refused."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from meltr import Auto, Bilevel, CentralDifference, ForwardMode, LossTransformer, OneSidedDifference, PerTask
from meltr.errors import LoopError

X = torch.randn(12, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
Y = torch.arange(12) % 3
ESTIMATORS = [Auto, ForwardMode, PerTask, CentralDifference, OneSidedDifference]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.other = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(6, 8)
        self.scale, self.set = nn.Parameter(torch.ones(8)), False
        self.double()

    def change(self) -> None:
        """Change weights as the forward passes of some models do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.change()
        return self.head((self.body(x) + self.other(x) / 5).tanh() * self.scale)

    def losses(self) -> list[torch.Tensor]:
        output = self(X)
        return [F.cross_entropy(output, Y), output.square().mean(), output.abs().mean(), output.mean().square()]


class Decayed(Model):
    @torch.no_grad()
    def change(self) -> None:
        self.body.weight.mul_(0.9)


class DecayedData(Model):
    def change(self) -> None:
        self.body.weight.data.mul_(0.9)  # leaves no mark that autograd knows


class Replaced(Model):
    def change(self) -> None:
        self.body.weight.data = self.body.weight.data * 0.9


class Average(Model):
    """A moving average of other weights that was left trainable."""

    @torch.no_grad()
    def change(self) -> None:
        self.other.weight.lerp_(self.body.weight, 0.3)


class Clamped(Model):
    @torch.no_grad()
    def change(self) -> None:
        self.body.weight.clamp_(-0.2, 0.2)


class Normalised(Model):
    @torch.no_grad()
    def change(self) -> None:
        self.body.weight.div_(self.body.weight.norm(dim=1, keepdim=True))


class FromData(Model):
    """Weights that are set from the first batch."""

    @torch.no_grad()
    def change(self) -> None:
        if not self.set:
            self.scale.copy_(1 / self.body(X).std(0))
            self.set = True


def loop(model: nn.Module, estimator=Auto, **settings) -> Bilevel:
    torch.manual_seed(2)
    m = LossTransformer(4, width=8, heads=2, feedforward=8, scale_hidden=8, start="random").double()
    return Bilevel(model, m, torch.optim.SGD(m.parameters(), 1e-3), gamma=0.0, estimator=estimator(), **settings)


def pair(kind: type[Model]) -> tuple[Model, Model]:
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        made.append(kind())
    return made[0], made[1]


def flat(gradients) -> torch.Tensor:
    return torch.cat([each.flatten() for each in gradients])


def assert_same(model: Model, plain: Model, a: torch.Tensor, products: torch.Tensor | None = None) -> None:
    """Compare gradients, weights and g with one evaluation and ``backward()`` of the weighted sum."""
    losses = plain.losses()
    if products is not None:
        rows = [flat(torch.autograd.grad(each, list(plain.parameters()), retain_graph=True)) for each in losses]
        torch.testing.assert_close(products, torch.stack([row @ rows[0] for row in rows]), rtol=1e-7, atol=1e-12)
    sum(weight * loss for weight, loss in zip(a, losses, strict=True)).backward()
    for (name, one), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-7, atol=1e-12, msg=name)
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0, msg=name)


@pytest.mark.parametrize("kind", [Decayed, DecayedData, Replaced, Average, Clamped, Normalised, FromData])
def test_a_step_with_one_evaluation_leaves_what_a_plain_one_leaves(kind):
    for estimator in ESTIMATORS:
        model, plain = pair(kind)
        bilevel = loop(model, estimator)
        for _ in range(2):
            model.zero_grad()
            plain.zero_grad()
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                result = bilevel.backward(model.losses, outer=True)
            assert_same(model, plain, result.sensitivities, result.outer.products)
        assert bilevel.estimator_in_use.name == "per_task"


@pytest.mark.parametrize("kind", [Decayed, DecayedData, Replaced, Average])
@pytest.mark.parametrize("settings", [{"retain_graph": False}, {"pieces": 2}, {"held_out": True}])
def test_what_would_change_them_twice_is_refused_by_name(kind, settings):
    model, _ = pair(kind)
    bilevel = loop(model, retain_graph=settings.get("retain_graph", True))
    compute = [model.losses] * settings["pieces"] if "pieces" in settings else model.losses
    name = "other.weight" if kind is Average else "body.weight"
    with pytest.raises(LoopError, match=rf"change the trained weight {name} by themselves.*\n.*after optimizer.step"):
        bilevel.backward(compute, outer=True, primary=model.losses if "held_out" in settings else None)


@pytest.mark.parametrize("kind", [Clamped, Normalised])
def test_a_change_that_is_the_same_again_does_no_harm(kind):
    model, plain = pair(kind)
    result = loop(model, retain_graph=False).backward(model.losses, outer=True)
    assert_same(model, plain, result.sensitivities)


def test_steps_without_an_outer_step_are_as_ever():
    model, plain = pair(Decayed)
    result = loop(model).backward(model.losses, outer=False)
    assert_same(model, plain, result.sensitivities)


class Reentrant(Model):
    def losses(self) -> list[torch.Tensor]:
        hidden = checkpoint(lambda x: self.body(x).tanh(), X.clone().requires_grad_(), use_reentrant=True)
        output = self.head(hidden) + self.other(X)[:, :3] * self.scale[:3]
        return [F.cross_entropy(output, Y), output.square().mean(), output.abs().mean(), output.mean().square()]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_reentrant_checkpoint_is_refused_by_name_in_outer_steps(estimator):
    """Without other weights below it, torch would skip its weights without a word."""
    model, plain = pair(Reentrant)
    bilevel = loop(model, estimator)
    a = bilevel.backward(model.losses, outer=False).sensitivities
    assert_same(model, plain, a)
    with pytest.raises(LoopError, match=r"use_reentrant=True.*\n.*use_reentrant=False"):
        bilevel.backward(model.losses, outer=True)


def test_what_forward_mode_cannot_do_is_named():
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 3))).double()

    def losses() -> list[torch.Tensor]:
        output = model(X)
        return [F.cross_entropy(output, Y), output.square().mean(), output.abs().mean(), output.mean().square()]

    with pytest.raises(
        LoopError, match=r"estimator=forward cannot evaluate these losses: .*\n.*auto or per_task"
    ) as found:
        loop(model, ForwardMode).backward(losses, outer=True)
    assert isinstance(found.value, LoopError)  # shown without a traceback
    assert "file an issue" not in str(found.value)
