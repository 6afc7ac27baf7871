"""Activation checkpointing and fused attention: kernels and graphs that the outer step must not disturb."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bilevel_cases import ESTIMATORS, Recorder, Tiny, estimator_of, flat, in_turn, scheme_of, take
from dense_reference import Dense, series
from meltr import Bilevel, LossTransformer, Scope
from scope_cases import WIDTH, Vit

CASES = [
    ("aid-fp-lite", "difference"),
    *((scheme, hessian) for scheme in ("aid-fp", "aid-cg", "stocbio") for hessian in ("difference", "double_backward")),
    ("itd", "difference"),
    ("sama", "difference"),
    ("none", "difference"),
]


class Saving(Vit):
    """Dropout blocks whose activations are not kept: each by itself, or two in one region."""

    regions = "none"

    def features(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.position
        first, second, third = self.blocks
        if self.regions == "first two":
            x = third(checkpoint(lambda y: second(first(y)), x, use_reentrant=False))
        elif self.regions == "last two":
            x = checkpoint(lambda y: third(second(y)), first(x), use_reentrant=False)
        else:
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=False) if self.regions == "each" else block(x)
        return self.norm(self.noise(x))


def combiner(losses: int) -> LossTransformer:
    torch.manual_seed(4)
    return LossTransformer(losses, width=8, heads=2, feedforward=8, scale_hidden=16, start="random").double()


def outer_steps(regions: str, estimator: str, scheme: str, hessian: str, scope: str, count: int = 4):
    """Outer steps at the same weights, two with a scope, which the second one knows: g, phi's and w's gradient."""
    torch.manual_seed(2)
    model, m = Saving().double().train(), combiner(count)
    model.regions = regions
    recorder = Recorder(m.parameters())
    bilevel = Bilevel(
        model, m, recorder, estimator=estimator_of(estimator), gamma=0.2, scope=Scope(scope),
        scheme=scheme_of(scheme, step=0.5, terms=2, damping=2.0, hessian=hessian),
        inner_optimizer=torch.optim.SGD(model.parameters(), 0.1, momentum=0.9),
    )  # fmt: skip

    def losses() -> list[Tensor]:
        return list(model.losses().values())[:count]

    for _ in range(1 if scope == "full" else 2):
        model.zero_grad()
        torch.manual_seed(7)
        outer = bilevel.backward(losses, others=lambda number: losses, outer=True).outer
        yield outer.products, flat(recorder.seen), flat(p.grad for p in model.parameters() if p.grad is not None)


def assert_same(one, other) -> None:
    for mine, theirs in zip(one, other, strict=True):
        for found, expected in zip(mine, theirs, strict=True):
            assert (found - expected).norm() <= 1e-12 * expected.norm()


@pytest.mark.parametrize(("case", "estimator", "regions"), in_turn(CASES, ESTIMATORS, ["each", "first two"]))
def test_checkpointed_blocks_give_the_same(regions, case, estimator):
    """Also for the inner gradient, the second backward on one graph; dropout masks are drawn again alike."""
    assert_same(outer_steps(regions, estimator, *case, "full"), outer_steps("none", estimator, *case, "full"))


@pytest.mark.parametrize(
    ("scheme", "estimator", "regions"),
    in_turn(["aid-fp-lite", "aid-fp", "itd"], ["forward", "difference", "per_task"], ["each", "first two", "last two"]),
)
def test_checkpointed_blocks_with_a_scope(regions, scheme, estimator):
    """The scope may end inside a region: its backward evaluates the block below for real."""
    plain = outer_steps("none", estimator, scheme, "difference", "last_block")
    assert_same(outer_steps(regions, estimator, scheme, "difference", "last_block"), plain)


def test_checkpointed_blocks_with_kept_task_gradients():
    plain = outer_steps("none", "per_task", "aid-fp-lite", "difference", "full", count=2)
    assert_same(outer_steps("each", "per_task", "aid-fp-lite", "difference", "full", count=2), plain)


class Region(nn.Module):
    """A module whose activations are not kept."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inside, x, use_reentrant=False)


def saving_norm() -> Tiny:
    """BatchNorm in a checkpointed region: its statistics move again when a backward evaluates the region."""
    torch.manual_seed(0)
    model = Tiny().double()
    model.body = Region(model.body)
    return model


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(("scheme", "hessian"), CASES)
def test_statistics_move_as_in_a_plain_step_with_checkpointing(scheme, hessian, estimator):
    """The backwards of the outer step leave no trace in them."""
    model, m = saving_norm(), combiner(4)
    plain = copy.deepcopy(model)
    torch.manual_seed(7)
    m(torch.stack(list(plain.losses().values()))).backward()
    chosen = scheme_of(scheme, step=0.5, terms=2, damping=2.0, hessian=hessian)
    take(
        model, m, estimator, scheme=chosen,
        inner_optimizer=torch.optim.SGD(model.parameters(), 0.1), others=lambda number: model.losses,
    )  # fmt: skip
    for buffer, theirs in zip(model.buffers(), plain.buffers(), strict=True):
        assert torch.equal(buffer, theirs)


class Fused(nn.Module):
    """Attention by ``F.scaled_dot_product_attention`` on whatever kernel torch prefers."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.head = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.register_buffer("x", torch.randn(2, 6, WIDTH), persistent=False)
        self.register_buffer("y", torch.randint(0, 3, (2, 6)), persistent=False)

    def attend(self, x: Tensor, causal: bool) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return x + self.out(mixed.transpose(1, 2).flatten(2)).tanh()

    def losses(self) -> dict[str, Tensor]:
        whole, causal = self.attend(self.x, False), self.attend(self.x, True)
        logits = self.head(causal)
        return {
            "ce": F.cross_entropy(logits.transpose(1, 2), self.y),
            "whole": F.cross_entropy(self.head(whole).transpose(1, 2), self.y),
            "size": logits.square().mean(),
            "same": (whole - causal).square().mean(),
        }


def fused() -> tuple[Fused, LossTransformer]:
    torch.manual_seed(0)
    return Fused().double(), combiner(4)


def test_the_kernel_is_a_fused_one():
    """It has no second derivative; so what follows tests what it means to test."""
    model, _ = fused()
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(sum(model.losses().values()), parameters, create_graph=True)
    with pytest.raises(RuntimeError, match="not implemented"):
        torch.autograd.grad(sum(gradient.square().sum() for gradient in gradients), parameters)


@cache
def dense_formula(scheme: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return g, phi's and w's gradient by the whole Jacobian and Hessian, for all cases of a scheme."""
    model, m = fused()
    dense = Dense(model, m, gamma=0.2)
    v = dense.v()
    if scheme == "itd":
        q = 0.5 * dense.v(dense.w - 0.5 * dense.u())
    else:
        q = series(dense.h(), v, 0.5, 2) if scheme == "aid-fp" else v
    return dense.j() @ q, dense.phi_gradient(q), dense.u()


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(("scheme", "hessian"), [case for case in CASES if case[0] in ("aid-fp-lite", "aid-fp", "itd")])
def test_fused_attention_equals_the_dense_formula(scheme, hessian, estimator):
    """Ways that need a second derivative run attention on the math kernel, the others on the fused one."""
    model, m = fused()
    g, expected, inner_gradient = dense_formula(scheme)
    chosen = scheme_of(scheme, step=0.5, terms=2, hessian=hessian)
    result, phi, inner = take(model, m, estimator, gamma=0.2, scheme=chosen)
    tolerance = 1e-5 if scheme == "aid-fp" and hessian == "difference" else 1e-7 if estimator == "difference" else 1e-10
    assert (result.outer.products - g).norm() <= tolerance * g.norm()
    assert (flat(phi) - expected).norm() <= tolerance * expected.norm()
    torch.testing.assert_close(flat(inner), inner_gradient, rtol=1e-10, atol=1e-12)
