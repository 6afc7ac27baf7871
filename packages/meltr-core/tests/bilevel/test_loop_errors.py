"""What cannot be trained is an error that says what was found and what to write instead."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from meltr import AIDFP, Bilevel, ForwardMode, LinearCombiner, LossTransformer, PerTask, UserError


class Loop:
    def __init__(self, losses: int = 3, estimator=None) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
        self.x, self.y, self.count = torch.randn(8, 4), torch.randint(3, (8,)), losses
        self.combiner = LinearCombiner(losses)
        optimizer = torch.optim.SGD(self.combiner.parameters(), 0.1)
        self.bilevel = Bilevel(self.model, self.combiner, optimizer, estimator=estimator)

    def of(self, output):
        return [F.cross_entropy(output, self.y), output.square().mean(), output.abs().mean()][: self.count]

    def losses(self):
        return self.of(self.model(self.x))


def test_an_outer_optimiser_of_other_parameters():
    model, combiner = nn.Linear(2, 2), LinearCombiner(2)
    with pytest.raises(UserError, match=r"holds 2 tensors .*LinearCombiner.*\n.*SGD\(combiner.parameters\(\)"):
        Bilevel(model, combiner, torch.optim.SGD(model.parameters(), 0.1))
    both = [*model.parameters(), *combiner.parameters()]
    with pytest.raises(UserError, match="holds 2 tensors"):
        Bilevel(model, combiner, torch.optim.SGD(both, 0.1))


def test_an_outer_optimiser_that_misses_parameters():
    model, combiner = nn.Linear(2, 2), LossTransformer(2, width=8, heads=2, feedforward=8, scale_hidden=8)
    name, first = next(combiner.named_parameters())
    rest = [parameter for parameter in combiner.parameters() if parameter is not first]
    with pytest.raises(UserError, match=rf"misses 1 parameters of the combiner: {name}\.\n.*requires_grad_\(False\)"):
        Bilevel(model, combiner, torch.optim.SGD(rest, 0.1))
    first.requires_grad_(False)
    Bilevel(model, combiner, torch.optim.SGD(rest, 0.1))
    Bilevel(model, combiner, torch.optim.SGD(combiner.parameters(), 0.1))


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (lambda loop: loop.losses(), "Tensor"),
        (lambda loop: torch.stack(loop.losses()), "Tensor"),
        (lambda loop: dict(zip("abc", loop.losses(), strict=True)), "dict"),
        (lambda loop: [loop.losses, loop.losses()[0]], "Tensor"),
    ],
)
def test_losses_instead_of_a_function(given, found):
    loop = Loop()
    with pytest.raises(UserError, match=rf"Expected a function .* found a {found}\.\n.*backward\(lambda: ") as error:
        loop.bilevel.backward(given(loop))
    assert isinstance(error.value, ValueError)
    assert loop.bilevel.steps == 0


@pytest.mark.parametrize("outer", [False, True])
@pytest.mark.parametrize("losses", [2, 3])
def test_losses_that_were_computed_before(losses, outer):
    loop = Loop(losses)
    before = loop.losses()
    phi = loop.combiner.raw.clone()
    with pytest.raises(UserError, match=r"returns losses that were computed before .*\n.*lambda: losses\(model\("):
        loop.bilevel.backward(lambda: before, outer=outer)
    assert torch.equal(loop.combiner.raw, phi)
    assert all(parameter.grad is None for parameter in loop.model.parameters())


@pytest.mark.parametrize("estimator", [ForwardMode, PerTask])
def test_losses_of_outputs_that_were_computed_before(estimator):
    """New tensors in every call, which do not move when the weights do."""
    loop = Loop(estimator=estimator())
    output = loop.model(loop.x)
    with pytest.raises(UserError, match="losses from outputs that were computed before"):
        loop.bilevel.backward(lambda: loop.of(output), outer=True)


def test_what_was_computed_before_from_other_leaves_may_be_used():
    loop = Loop()
    scale = torch.tensor(0.3, requires_grad=True)
    factor = scale.exp()
    result = loop.bilevel.backward(lambda: loop.of(loop.model(loop.x) * factor), outer=True)
    assert result.outer.applied
    assert scale.grad is not None


def test_a_loss_of_another_thread_is_not_taken_for_an_old_one():
    """Each thread numbers its nodes from zero."""
    loop, calls = Loop(), []

    def losses():
        calls.append(1)
        return pool.submit(loop.losses).result()

    with ThreadPoolExecutor(1) as pool:
        loop.bilevel.backward(losses)
        first = len(calls)
        loop.bilevel.backward(losses)
    assert len(calls) == first + 1  # asked twice at the first call only
    torch.testing.assert_close(loop.model[2].bias.grad, 2 * expected_gradient(), rtol=1e-5, atol=1e-7)


def expected_gradient():
    loop = Loop()
    sum(loop.losses()).backward()
    return loop.model[2].bias.grad


def test_a_combiner_on_another_device():
    loop = Loop()
    combiner = LinearCombiner(3).to("meta")
    bilevel = Bilevel(loop.model, combiner, torch.optim.SGD(combiner.parameters(), 0.1))
    with pytest.raises(UserError, match=r'losses are on cpu, but the combiner is on meta\.\n.*combiner.to\("cpu"\)'):
        bilevel.backward(loop.losses)


def test_a_loss_per_example():
    loop = Loop()
    with pytest.raises(ValueError, match=r"loss number 1 must be a scalar tensor, got \(8,\)"):
        loop.bilevel.backward(lambda: [loop.losses()[0], loop.model(loop.x).square().mean(1), loop.losses()[2]])


def test_the_repr_says_what_is_trained_and_how():
    loop = Loop()
    assert repr(loop.bilevel) == (
        "Bilevel(model=Sequential, combiner=LinearCombiner(), scheme=AIDFPLite(), estimator=auto, every=3, gamma=0.1, "
        "steps=0, outer_steps=0)"
    )
    combiner = LinearCombiner(["ce", "size"])
    optimizer = torch.optim.SGD(combiner.parameters(), 0.1)
    named = Bilevel(loop.model, combiner, optimizer, scheme=AIDFP(terms=2), estimator=ForwardMode(), every=5)
    for part in ("LinearCombiner(ce, size)", "AIDFP(", "terms=2", "estimator=forward", "every=5"):
        assert part in repr(named)
