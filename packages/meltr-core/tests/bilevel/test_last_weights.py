"""Gradient accumulation with the task weights of the preceding step: each micro-batch is evaluated once."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from meltr import Bilevel, LossTransformer, UserError
from meltr.combiners.base import GradientCombiner
from meltr.combiners.uncertainty import UncertaintyCombiner
from tallies import Tally

N, NAMES = 3, ("target", "small", "flat")


class Net(nn.Module):
    """Counts its evaluations; BatchNorm has buffers, and dropout draws."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.2), nn.Linear(5, 3))
        self.tally = Tally()

    def losses(self, x, y):
        self.tally.count += 1
        logits = self.layers(x)
        return {"target": F.cross_entropy(logits, y), "small": logits.square().mean(), "flat": logits.pow(4).mean()}


def net() -> Net:
    torch.manual_seed(0)
    return Net().double()


def transformer():
    torch.manual_seed(2)
    return LossTransformer(3, width=8, heads=2, feedforward=8, scale_hidden=8, start="random").double()


def batches(steps: int):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        yield [
            (torch.randn(6, 3, generator=generator).double(), torch.randint(3, (6,), generator=generator))
            for _ in range(N)
        ]


class Loop:
    def __init__(self, model, combiner, **settings):
        self.model, self.optimizer = model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        outer = torch.optim.SGD(combiner.parameters(), 0.1)
        settings = {"every": 3, "estimator": None, "accumulate_weights": "last", **settings}
        self.bilevel = Bilevel(model, combiner, outer, **settings)

    def step(self, pieces):
        self.optimizer.zero_grad()
        found = self.bilevel.backward([lambda piece=piece: self.model.losses(*piece) for piece in pieces])
        self.optimizer.step()
        return found


def test_the_gradient_is_plain_accumulation_with_the_weights_of_the_step_before():
    """Truth: autograd on a copy of the model, weights, buffers and random numbers included."""
    torch.manual_seed(3)
    loop = Loop(net(), transformer(), every=100)
    before = loop.step(next(batches(1)))
    plain, (_, pieces) = copy.deepcopy(loop.model), batches(2)
    start = torch.random.get_rng_state()
    found = loop.step(pieces)
    after = torch.random.get_rng_state()

    torch.random.set_rng_state(start)
    plain.zero_grad()
    means = torch.zeros(3, dtype=torch.float64)
    for piece in pieces:
        losses = torch.stack(list(plain.losses(*piece).values()))
        (losses @ weights_of(loop, before) / N).backward()
        means += losses.detach() / N
    assert torch.equal(torch.random.get_rng_state(), after)
    for (name, parameter), other in zip(loop.model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-10, atol=1e-13, msg=name)
    for (name, buffer), other in zip(loop.model.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(buffer, other, msg=name)
    torch.testing.assert_close(found.losses, means)
    torch.testing.assert_close(found.combined, loop.bilevel.combiner(means).detach())
    assert list(found.weights.values()) == list(before.weights.values())


def weights_of(loop, found):
    return torch.autograd.functional.jacobian(loop.bilevel.combiner, found.losses)


def test_every_micro_batch_is_evaluated_once_but_for_the_first_and_the_outer_steps():
    counts = {}
    for which in ("last", "current"):
        loop = Loop(net(), transformer(), accumulate_weights=which)
        counts[which], outer = [], []
        for pieces in batches(5):
            loop.model.tally.count = 0
            outer.append(loop.step(pieces).outer is not None)
            counts[which].append(loop.model.tally.count)
        assert outer == [False, False, False, True, False]
    inner = [0, 1, 2, 4]
    assert [counts["current"][step] for step in inner] == [2 * N] * 4
    assert [counts["last"][step] for step in inner] == [2 * N, N, N, N]
    assert counts["last"][3] == counts["current"][3] > 2 * N


def test_a_step_with_an_outer_step_uses_the_weights_of_the_combiner_that_it_trained():
    loop = Loop(net(), transformer(), every=1)
    for pieces in batches(3):
        found = loop.step(pieces)
    torch.testing.assert_close(torch.stack(list(found.weights.values())), weights_of(loop, found))


def test_a_resumed_loop_goes_on_with_the_same_weights():
    first = Loop(net(), transformer())
    *before, middle, last = batches(4)
    for pieces in before:
        first.step(pieces)
    second = Loop(copy.deepcopy(first.model), transformer())
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    second.bilevel.load_state_dict(copy.deepcopy(first.bilevel.state_dict()))
    ends = []
    for loop in (first, second):
        torch.manual_seed(5)
        ends.append([list(loop.step(pieces).weights.values()) for pieces in (middle, last)])
    assert ends[0] == ends[1]
    for parameter, other in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(parameter, other)


def test_a_single_batch_is_weighed_by_its_own_losses():
    loop = Loop(net(), transformer(), every=100)
    for pieces in batches(2):
        found = loop.step(pieces[:1])
        torch.testing.assert_close(torch.stack(list(found.weights.values())), weights_of(loop, found))


class Mean(GradientCombiner):
    def from_gradients(self, losses, rows):
        return [sum(parts) / len(losses) for parts in zip(*rows, strict=True)], torch.full_like(losses, 1 / len(losses))


@pytest.mark.parametrize("combiner", [Mean(NAMES), UncertaintyCombiner(NAMES)])
def test_combiners_that_see_every_gradient_are_refused(combiner):
    with pytest.raises(UserError, match=rf"accumulate_weights=last .* {type(combiner).__name__}"):
        Bilevel(net(), combiner, accumulate_weights="last")


def test_another_word_is_an_error():
    with pytest.raises(ValueError, match="got 'first'"):
        Bilevel(net(), transformer(), accumulate_weights="first")
