"""Losses that differentiate by themselves: gradient penalties, adversarial examples, steps inside the loss.

The truth is one backward pass per task, which needs no evaluation without a graph.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from meltr import Auto, Bilevel, CentralDifference, ForwardMode, LossTransformer, OneSidedDifference, PerTask

INPUTS, LABELS = torch.randn(16, 6, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 3


class Model(nn.Module):
    """Batch norm and a counter: buffers that a forward pass which fails half-way has already moved."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 3))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls = self.calls + 1
        return self.body(x)


def penalty(model: nn.Module) -> torch.Tensor:
    inputs = INPUTS.clone().requires_grad_()
    (slope,) = torch.autograd.grad(model(inputs).logsumexp(1).sum(), inputs, create_graph=True)
    return slope.square().sum(1).mean()


def adversarial(model: nn.Module) -> torch.Tensor:
    inputs = INPUTS.clone().requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(model(inputs), LABELS), inputs)
    return F.cross_entropy(model(INPUTS + 0.1 * slope.sign()), LABELS)


def by_backward(model: nn.Module) -> torch.Tensor:
    inputs = INPUTS.clone().requires_grad_()
    F.cross_entropy(model(inputs), LABELS).backward()
    return F.cross_entropy(model(INPUTS + 0.1 * inputs.grad.sign()), LABELS)


def with_hook(model: nn.Module) -> torch.Tensor:
    output = model(INPUTS)
    output.register_hook(lambda gradient: gradient.clamp(-1, 1))
    return output.square().mean()


def call(second, estimator=Auto, losses: int = 4, pieces: int = 1):
    """Return the model after one call of `backward` with an outer step, and its result."""
    torch.manual_seed(1)
    model = Model()

    def compute() -> list[torch.Tensor]:
        extra = second(model)
        output = model(INPUTS)
        found = [F.cross_entropy(output, LABELS), extra, output.abs().mean(), output.square().mean()]
        return found[:losses]

    m = LossTransformer(losses, width=8, heads=2, feedforward=8, scale_hidden=8, start="random")
    bilevel = Bilevel(model, m, torch.optim.SGD(m.parameters(), 1e-3), gamma=0.0, estimator=estimator())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return model, bilevel.backward([compute] * pieces if pieces > 1 else compute, outer=True)


def assert_same_step(found: nn.Module, right: nn.Module) -> None:
    for (name, one), (_, other) in zip(found.named_parameters(), right.named_parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6, msg=name)
    for (name, one), (_, other) in zip(found.named_buffers(), right.named_buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize("second", [penalty, adversarial, by_backward, with_hook])
@pytest.mark.parametrize("estimator", [Auto, ForwardMode, CentralDifference, OneSidedDifference])
def test_an_outer_step_gives_the_g_of_one_backward_per_task(second, estimator):
    right, expected = call(second, PerTask)
    found, result = call(second, estimator)
    torch.testing.assert_close(result.outer.products, expected.outer.products, rtol=1e-2, atol=1e-3)
    assert_same_step(found, right)


@pytest.mark.parametrize("second", [penalty, adversarial, by_backward, with_hook])
@pytest.mark.parametrize("losses", [2, 4])
def test_micro_batches_leave_what_the_plain_steps_leave(second, losses):
    model, result = call(second, losses=losses, pieces=2)
    torch.manual_seed(1)
    plain = Model()
    LossTransformer(losses, width=8, heads=2, feedforward=8, scale_hidden=8, start="random")  # the same draws
    for _ in range(2):
        extra = second(plain)
        output = plain(INPUTS)
        found = [F.cross_entropy(output, LABELS), extra, output.abs().mean(), output.square().mean()][:losses]
        sum(a * loss / 2 for a, loss in zip(result.sensitivities, found, strict=True)).backward()
    assert_same_step(model, plain)


def test_a_penalty_that_comes_later_works_too():
    torch.manual_seed(1)
    model, calls = Model(), []

    def compute() -> list[torch.Tensor]:
        output = model(INPUTS)
        extra = penalty(model) if len(calls) > 1 else output.square().mean()
        return [F.cross_entropy(output, LABELS), extra, output.abs().mean(), output.mean().square()]

    m = LossTransformer(4, width=8, heads=2, feedforward=8, scale_hidden=8)
    bilevel = Bilevel(model, m, torch.optim.SGD(m.parameters(), 1e-3), estimator=ForwardMode())
    for number in range(4):
        calls.append(number)
        bilevel.backward(compute, outer=True)
        assert int(model.calls) == sum(2 if each > 0 else 1 for each in range(number + 1))
