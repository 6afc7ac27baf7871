"""No scheme leaves a trace: weights, buffers, generators, and the inner gradient are those of a plain step."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from bilevel_cases import SCHEMES, ConvNet, Encoder, build, flat, scheme_of, take
from tallies import Tally

CURVED = ("aid-fp", "aid-cg", "stocbio")
CASES = [
    *((name, "difference") for name in SCHEMES),
    *((name, "double_backward") for name in CURVED),
]


def settings(model: nn.Module, scheme: str, hessian: str) -> dict:
    """An outer step with a scheme; every scheme is given all that one of them needs."""
    return {
        "scheme": scheme_of(scheme, step=None if scheme == "itd" else 0.1, terms=2, hessian=hessian),
        "inner_optimizer": torch.optim.AdamW(model.parameters(), 0.01),
        "others": (lambda number: model.losses) if scheme == "stocbio" else None,
        "gamma": 0.2,
    }


def assert_same_state(one: nn.Module, other: nn.Module) -> None:
    for (name, mine), theirs in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name


@pytest.mark.parametrize("kind", [ConvNet, Encoder])
@pytest.mark.parametrize(("scheme", "hessian"), CASES)
def test_weights_buffers_generators_and_inner_gradient_are_those_of_a_plain_step(scheme, hessian, kind):
    model, m = build(kind)
    plain = copy.deepcopy(model)
    torch.manual_seed(7)
    m(torch.stack(list(plain.losses().values()))).backward()
    if scheme == "stocbio":  # its two batches are drawn, too
        drawn = copy.deepcopy(plain)
        drawn.losses(), drawn.losses()
    expected_draw = torch.rand(4)
    _, _, found = take(model, m, "forward", **settings(model, scheme, hessian))
    assert torch.equal(torch.rand(4), expected_draw)
    assert_same_state(model, plain)
    expected = [p.grad for p in plain.parameters() if p.requires_grad]
    assert [g is None for g in found] == [g is None for g in expected]
    assert (flat(found) - flat(expected)).norm() <= 1e-5 * flat(expected).norm()
    assert all(p.grad is None for p in m.parameters())
    assert all(module.training for module in model.modules())


class Noisy(Encoder):
    """Draws from every generator that a loss may use, and writes down what it drew."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)
        self.wrote = Tally()

    @property
    def seen(self) -> list[tuple]:
        return self.wrote.seen

    def losses(self) -> dict[str, torch.Tensor]:
        losses = super().losses()
        drawn = (random.random(), float(np.random.rand()), float(torch.rand((), generator=self.generator)))
        self.seen.append((*drawn, float(torch.rand(()))))
        return {name: loss * (1 + sum(drawn)) for name, loss in losses.items()}


@pytest.mark.parametrize("estimator", ["forward", "difference", "per_task"])
@pytest.mark.parametrize(("scheme", "hessian"), [case for case in CASES if case[0] != "stocbio"])
def test_every_evaluation_sees_the_same_random_numbers(scheme, hessian, estimator):
    torch.manual_seed(0)
    model = Noisy().train()
    _, m = build(Encoder)
    random.seed(3)
    np.random.seed(3)
    take(model, m, estimator, generators=[model.generator], **settings(model, scheme, hessian))
    again = estimator != "per_task" or (hessian == "difference" and scheme in (*CURVED, "itd"))
    assert len(model.seen) > 1 or scheme == "none" or not again
    assert len(set(model.seen)) == 1
    following = (random.random(), float(np.random.rand()), float(torch.rand((), generator=model.generator)))
    random.seed(3)
    np.random.seed(3)
    model.generator.manual_seed(0)
    expected = [(random.random(), float(np.random.rand()), float(torch.rand((), generator=model.generator)))
                for _ in range(2)]  # fmt: skip
    assert model.seen[0][:3] == expected[0]
    assert following == expected[1]


@pytest.mark.parametrize(("scheme", "hessian"), [case for case in CASES if case[0] != "none"])
def test_same_seed_same_outer_gradient(scheme, hessian):
    """Bit by bit: nothing depends on what was evaluated before."""
    found = []
    for _ in range(2):
        model, m = build(Encoder)
        _, phi, _ = take(model, m, "forward", **settings(model, scheme, hessian))
        found.append(flat(phi))
    assert torch.equal(*found)


@pytest.mark.parametrize("fails_at", [2, 3, 4])
@pytest.mark.parametrize(
    ("scheme", "estimator"), [("aid-fp", "forward"), ("itd", "difference"), ("aid-cg", "per_task")]
)
def test_a_failing_evaluation_leaves_weights_buffers_and_generators_as_they_were(scheme, estimator, fails_at):
    model, m = build(ConvNet)
    plain = copy.deepcopy(model)
    torch.manual_seed(7)
    plain.losses()
    torch.rand(3)
    expected_draw = torch.rand(4)
    calls = 0

    def losses():
        nonlocal calls
        calls += 1
        found = model.losses()
        torch.rand(3)
        if calls == fails_at:
            raise FloatingPointError("on purpose")
        return found

    with pytest.raises(FloatingPointError):
        take(model, m, estimator, compute=losses, **settings(model, scheme, "difference"))
    assert torch.equal(torch.rand(4), expected_draw)
    assert_same_state(model, plain)


@pytest.mark.parametrize("scheme", ["aid-fp-lite", "itd", "sama", "aid-fp"])
def test_the_inner_optimiser_and_its_state_are_only_read(scheme):
    model, m = build(ConvNet)
    options = settings(model, scheme, "difference")
    optimizer = options["inner_optimizer"]
    for _ in range(2):
        optimizer.zero_grad()
        torch.stack(list(model.losses().values())).sum().backward()
        optimizer.step()
    before = copy.deepcopy(optimizer.state_dict())
    take(model, m, "forward", **options)
    torch.testing.assert_close(optimizer.state_dict(), before, rtol=0, atol=0)


def test_accumulated_gradients_are_kept():
    """``backward`` adds to ``.grad`` as autograd does, also after an outer step that kept the task gradients."""
    for estimator, scheme in (("per_task", "aid-fp-lite"), ("forward", "itd")):
        model, m = build(ConvNet)
        plain = copy.deepcopy(model)
        torch.manual_seed(7)
        m(torch.stack(list(plain.losses().values()))).backward()
        options = settings(model, scheme, "difference")
        ones = [torch.ones_like(p) for p in model.parameters()]
        real_zero_grad = model.zero_grad

        def with_ones(set_to_none=True, *, model=model, ones=ones, real=real_zero_grad):
            real()
            for parameter, one in zip(model.parameters(), ones, strict=True):
                parameter.grad = one.clone()

        object.__setattr__(model, "zero_grad", with_ones)
        _, _, found = take(model, m, estimator, **options)
        for mine, theirs in zip(found, plain.parameters(), strict=True):
            torch.testing.assert_close(mine, 1 + theirs.grad, rtol=1e-4, atol=1e-5)
