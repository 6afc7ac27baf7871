"""Micro-batches that come one call at a time: averaged gradients, K counted in steps of the optimiser."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from meltr import Bilevel, LinearCombiner, LossTransformer, UserError
from meltr.combiners.base import GradientCombiner
from meltr.combiners.famo import Famo
from meltr.combiners.fixed import FixedCombiner
from meltr.combiners.gradnorm import GradNorm

N = 4


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))

    def losses(self, x, y):
        logits = self.layers(x)
        return [F.cross_entropy(logits, y), logits.square().mean(), logits.pow(4).mean()]


def net() -> Net:
    torch.manual_seed(0)
    return Net().double()


def batches(steps: int):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        yield [
            (torch.randn(6, 3, generator=generator).double(), torch.randint(3, (6,), generator=generator))
            for _ in range(N)
        ]


def fixed():
    return FixedCombiner(3, weights=[1.0, 0.5, -0.2]).double()


def linear():
    return LinearCombiner(3, start_weight=0.7).double()


class Mean(GradientCombiner):
    """The mean of the task gradients."""

    def from_gradients(self, losses, rows):
        weights = torch.full_like(losses, 1 / len(losses))
        return [sum(parts) / len(losses) for parts in zip(*rows, strict=True)], weights


@pytest.mark.parametrize("make", [fixed, linear])
def test_calls_of_a_window_equal_a_list_of_micro_batches(make):
    """No outer step, so that the task weights are the same in both; weights and buffers of BatchNorm."""
    ends = []
    for one_call in (True, False):
        model = net()
        bilevel, optimizer = Bilevel(model, make()), torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        for pieces in batches(3):
            functions = [lambda piece=piece, model=model: model.losses(*piece) for piece in pieces]
            if one_call:
                bilevel.backward(functions)
            else:
                for function in functions:
                    bilevel.backward(function, accumulate=N)
            optimizer.step()
            optimizer.zero_grad()
        assert bilevel.steps == 3
        ends.append(model.state_dict())
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("losses", [2, 3])
def test_k_counts_steps_of_the_optimiser_and_outer_steps_open_a_window(losses):
    model = net()
    torch.manual_seed(2)
    combiner = LossTransformer(losses, width=8, heads=2, feedforward=8, scale_hidden=8, start="random").double()
    bilevel = Bilevel(model, combiner, torch.optim.SGD(combiner.parameters(), 0.1), every=2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    taken, dues = [], []
    for pieces in batches(5):
        for piece in pieces:
            dues.append(bilevel.outer_step_due)
            step = bilevel.backward(lambda piece=piece: model.losses(*piece)[:losses], accumulate=N)
            taken.append(step.outer is not None)
        optimizer.step()
        optimizer.zero_grad()
    expected = [step in (2, 4) and call == 0 for step in range(5) for call in range(N)]
    assert taken == dues == expected
    assert (bilevel.steps, bilevel.outer_steps) == (5, 2)


@pytest.mark.parametrize("losses", [2, 3])
def test_with_an_outer_step_the_gradient_is_the_mean_of_the_weighted_sums(losses):
    """With the task weights that each call reports; two losses take the gradient from kept rows."""
    model = net()
    plain = copy.deepcopy(model)
    torch.manual_seed(2)
    combiner = LossTransformer(losses, width=8, heads=2, feedforward=8, scale_hidden=8, start="random").double()
    bilevel = Bilevel(model, combiner, torch.optim.SGD(combiner.parameters(), 0.1), every=1)
    bilevel.count_from(1, 0)
    (pieces,) = batches(1)
    for number, piece in enumerate(pieces):
        step = bilevel.backward(lambda piece=piece: model.losses(*piece)[:losses], accumulate=N)
        assert (step.outer is not None) == (number == 0)
        found = plain.losses(*piece)[:losses]
        sum(a * loss / N for a, loss in zip(step.sensitivities, found, strict=True)).backward()
    for parameter, expected in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-9, atol=1e-12)


def test_a_combiner_of_task_gradients_averages_too():
    model = net()
    plain = copy.deepcopy(model)
    bilevel = Bilevel(model, Mean(["a", "b", "c"]))
    (pieces,) = batches(1)
    for piece in pieces:
        bilevel.backward(lambda piece=piece: model.losses(*piece), accumulate=N)
        (sum(plain.losses(*piece)) / 3 / N).backward()
    for parameter, expected in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-9, atol=1e-12)


def test_an_optimiser_step_ends_a_window_early():
    """Of seven micro-batches the last window has three; the following window starts anew."""
    model = net()
    bilevel = Bilevel(model, linear())
    for size in (4, 3):
        for piece in [each for pieces in batches(1) for each in pieces][:size]:
            bilevel.backward(lambda piece=piece: model.losses(*piece), accumulate=4)
        bilevel.after_step()
    assert bilevel.steps == 2
    assert not bilevel.outer_step_due


@pytest.mark.parametrize("kind", [GradNorm, Famo])
def test_a_rule_of_its_own_is_followed_once_per_step(kind, monkeypatch):
    model, combiner, calls = net(), kind(3), []
    rule = combiner.own_gradients
    monkeypatch.setattr(combiner, "own_gradients", lambda step: calls.append(step) or rule(step))
    bilevel = Bilevel(model, combiner, torch.optim.SGD(combiner.parameters(), 0.01))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for pieces in batches(3):
        for piece in pieces:
            bilevel.backward(lambda piece=piece: model.losses(*piece), accumulate=N)
        optimizer.step()
        optimizer.zero_grad()
        bilevel.after_step()
    assert len(calls) == 3


def test_what_does_not_fit_into_a_window_is_an_error():
    model, combiner = net(), linear()
    bilevel = Bilevel(model, combiner, torch.optim.SGD(combiner.parameters(), 0.1))
    ((piece, *_),) = batches(1)

    def losses():
        return model.losses(*piece)

    with pytest.raises(ValueError, match="accumulate must be at least 1, got 0"):
        bilevel.backward(losses, accumulate=0)
    bilevel.backward(losses, accumulate=3)
    with pytest.raises(UserError, match=r"accumulate=2 within a window of 3 calls, after 1 of them.\n.*after_step\(\)"):
        bilevel.backward(losses, accumulate=2)
    with pytest.raises(UserError, match="outer=True within a window"):
        bilevel.backward(losses, accumulate=3, outer=True)
    with pytest.raises(UserError, match=r"outer_step\(\) within a window"):
        bilevel.outer_step(losses, losses)
