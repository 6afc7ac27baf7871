"""Outer steps in bf16 and float16: autocast, gradient scaler, and whole models in low precision."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn

from bilevel_cases import (
    ESTIMATORS,
    Quadratic,
    Recorder,
    SmoothConvNet,
    SmoothEncoder,
    build,
    estimator_of,
    flat,
    in_turn,
    scheme_of,
    take,
)
from meltr import Bilevel, LinearCombiner, Setup
from meltr.errors import UserError

KINDS = [SmoothConvNet, SmoothEncoder]
CASES = [
    ("aid-fp-lite", "difference"),
    *((scheme, hessian) for scheme in ("aid-fp", "aid-cg", "stocbio") for hessian in ("difference", "double_backward")),
    ("itd", "difference"),
    ("sama", "difference"),
]
BF16 = 3e-2
"""bf16 rounds at 2^-8 = 4e-3; a handful of layers, forward and backward, add up to 0.5 to 1.2 %."""
FP16 = 5e-3
"""float16 rounds at 2^-11 = 5e-4."""


def settings(model: nn.Module, scheme: str, hessian: str, optimizer: type = torch.optim.AdamW) -> dict:
    more = {"eps": 1e-2} if optimizer is torch.optim.AdamW else {"momentum": 0.9, "nesterov": True}
    return {
        "gamma": 0.2,
        "scheme": scheme_of(scheme, step=0.1, terms=2, damping=1.0, hessian=hessian),
        "inner_optimizer": optimizer(model.parameters(), 0.01, **more),
        "others": (lambda number: model.losses) if scheme == "stocbio" else None,
    }


@cache
def exact(kind: type, scheme: str, optimizer: type = torch.optim.AdamW) -> tuple[torch.Tensor, torch.Tensor]:
    """g and phi's gradient in float32, without a difference anywhere; several cases are compared with it."""
    model, m = build(kind)
    result, phi, _ = take(model, m, "double_backward", **settings(model, scheme, "double_backward", optimizer))
    return result.outer.products, flat(phi)


def close(one: torch.Tensor, other: torch.Tensor, tolerance: float) -> None:
    gap = (one.double() - other.double()).norm() / other.double().norm()
    assert gap <= tolerance, gap


@pytest.mark.parametrize(("case", "estimator", "kind"), in_turn(CASES, ESTIMATORS, KINDS))
def test_bf16_autocast(kind, case, estimator):
    scheme, hessian = case
    g, phi = exact(kind, scheme)
    model, m = build(kind)
    result, found, _ = take(model, m, estimator, autocast=torch.bfloat16, **settings(model, scheme, hessian))
    close(result.outer.products, g, BF16)
    close(flat(found), phi, BF16)


@pytest.mark.parametrize(("case", "estimator", "kind"), in_turn(CASES, ["forward", "difference", "per_task"], KINDS))
def test_autocast_context_of_the_caller(kind, case, estimator):
    """It keeps bf16 copies of the weights, which must not serve for displaced weights."""
    scheme, hessian = case
    g, phi = exact(kind, scheme)
    model, m = build(kind)
    with torch.autocast("cpu", torch.bfloat16):
        result, found, _ = take(model, m, estimator, **settings(model, scheme, hessian))
    close(result.outer.products, g, BF16)
    close(flat(found), phi, BF16)


@pytest.mark.parametrize("scheme", ["aid-fp-lite", "itd"])
def test_difference_under_bf16_autocast_is_as_good_as_the_direction(scheme):
    """Its forwards run in float32: what remains is the rounding of q, which forward mode shares."""
    model, m = build(SmoothEncoder)
    forward, _, _ = take(model, m, "forward", autocast=torch.bfloat16, **settings(model, scheme, "difference"))
    model, m = build(SmoothEncoder)
    difference, _, _ = take(model, m, "difference", autocast=torch.bfloat16, **settings(model, scheme, "difference"))
    g, _ = exact(SmoothEncoder, scheme)
    close(difference.outer.products, g, 5e-3)
    close(difference.outer.products, forward.outer.products, BF16)


def scaler(scale: float) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=scale)


@pytest.mark.parametrize(("case", "estimator", "kind"), in_turn(CASES, ESTIMATORS, KINDS))
def test_float16_with_a_gradient_scaler(kind, case, estimator):
    """g and phi's gradient are unscaled; ``.grad`` is scaled, as ``scaler.step`` expects."""
    scheme, hessian = case
    g, phi = exact(kind, scheme)
    model, m = build(kind)
    result, found, scaled = take(
        model, m, estimator, autocast=torch.float16, scaler=scaler(256.0), **settings(model, scheme, hessian)
    )
    close(result.outer.products, g, FP16)
    close(flat(found), phi, FP16)
    plain, _ = build(kind)
    torch.manual_seed(7)
    with torch.autocast("cpu", torch.float16):
        losses = torch.stack([loss.float() for loss in plain.losses().values()])
    (256 * m(losses)).backward()
    close(flat(scaled), flat(p.grad for p in plain.parameters() if p.requires_grad), FP16)


@pytest.mark.parametrize("estimator", ["forward", "difference", "per_task"])
@pytest.mark.parametrize("count", [2, 3])
def test_the_scale_saves_gradients_from_underflow(estimator, count):
    """Losses so small that float16 backwards flush to zero; with two and three losses task gradients are kept."""
    m = LinearCombiner(count, positive=False, start_weight=0.7)

    def found(autocast: torch.dtype | None, scale: float | None) -> tuple[torch.Tensor, torch.Tensor]:
        model, _ = build(SmoothConvNet)

        def losses() -> list[torch.Tensor]:
            return [1e-7 * loss.float() for loss in model.losses().values()][:count]

        own = None if scale is None else scaler(scale)
        result, _, inner = take(model, m, estimator, compute=losses, gamma=0.2, autocast=autocast, scaler=own)
        return result.outer.products, flat(inner) / (scale or 1.0)

    g, inner = found(None, None)
    scaled, scaled_inner = found(torch.float16, 2.0**20)
    close(scaled, g, FP16)
    close(scaled_inner, inner, FP16)
    plain, _ = found(torch.float16, None)
    assert (plain - g).norm() > 0.1 * g.norm()


def test_disabled_scaler_is_none():
    found = []
    for own in (torch.amp.GradScaler("cpu", enabled=False), None):
        model, m = build(SmoothEncoder)
        _, phi, inner = take(model, m, "forward", scaler=own)
        found.append((flat(phi), flat(inner)))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("estimator", ["forward", "per_task"])
@pytest.mark.parametrize("scheme", ["aid-fp-lite", "itd"])
def test_overflow_leaves_the_step_out_lowers_the_scale_and_training_goes_on(scheme, estimator):
    model, m = build(SmoothConvNet)
    lines: list[str] = []
    grad_scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60, backoff_factor=2.0**-16)
    outer, inner = torch.optim.Adam(m.parameters(), 0.01), torch.optim.SGD(model.parameters(), 0.1)
    options = settings(model, scheme, "difference") | {"inner_optimizer": inner}
    del options["others"]
    bilevel = Bilevel(
        model, m, outer, estimator=estimator_of(estimator), every=1,
        setup=Setup(autocast=torch.float16, scaler=grad_scaler), log=lines.append, **options,
    )  # fmt: skip
    applied, moved = [], []
    for _ in range(7):
        before = flat([m.fc1.weight.detach().clone()]), flat(p.detach().clone() for p in model.parameters())
        inner.zero_grad()
        result = bilevel.backward(model.losses)
        grad_scaler.step(inner)
        grad_scaler.update()
        if result.outer is not None:
            applied.append(result.outer.applied)
            assert torch.equal(before[0], flat([m.fc1.weight.detach()])) != result.outer.applied
        moved.append(not torch.equal(before[1], flat(p.detach() for p in model.parameters())))
    assert applied[0] is False
    assert applied[-1] is True
    assert moved[0] is False
    assert moved[-1] is True
    assert sorted(applied) == applied  # once the scale fits, it stays
    assert grad_scaler.get_scale() < 2.0**60
    assert "not finite" in lines[0]
    assert all(p.isfinite().all() for p in (*m.parameters(), *model.parameters()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("scheme", "estimator", "kind"),
    in_turn(["aid-fp-lite", "aid-fp", "itd", "sama"], ["auto", "forward", "per_task", "double_backward"], KINDS),
)
def test_models_in_low_precision(kind, scheme, estimator, dtype):
    """SAMA with SGD: in float16, Adam's own squares of gradients are rounded away."""
    g, phi = exact(kind, scheme, torch.optim.SGD)
    model, m = build(kind)
    model.to(dtype)
    result, found, inner = take(model, m, estimator, **settings(model, scheme, "double_backward", torch.optim.SGD))
    tolerance = BF16 if dtype == torch.bfloat16 else FP16
    close(result.outer.products, g, tolerance)
    close(flat(found), phi, tolerance)
    assert all(gradient is None or gradient.dtype == dtype for gradient in inner)
    assert result.losses.dtype == torch.float32


@pytest.mark.parametrize(("kind", "expected"), [(SmoothConvNet, "per_task"), (SmoothEncoder, "forward")])
def test_auto_never_chooses_differences_for_a_model_in_low_precision(kind, expected):
    model, m = build(kind)
    model.to(torch.bfloat16)
    bilevel = Bilevel(model, m, Recorder(m.parameters()))
    bilevel.backward(model.losses, outer=True)
    assert bilevel.estimator.chosen == expected


@pytest.mark.parametrize(
    ("estimator", "scheme", "words"),
    [
        ("difference", "aid-fp-lite", ["estimator=difference", "bfloat16", "estimator=per_task", "autocast"]),
        ("forward", "aid-fp", ["hessian=difference", "bfloat16", "hessian=double_backward", "autocast"]),
        ("per_task", "aid-cg", ["hessian=difference"]),
        ("per_task", "stocbio", ["hessian=difference"]),
    ],
)
def test_differences_of_a_model_in_low_precision_are_refused(estimator, scheme, words):
    """A step of 1e-4 is lost in the rounding of the weights: g would be zero, q wrong by up to 180 %."""
    model, m = build(SmoothEncoder)
    model.to(torch.bfloat16)
    with pytest.raises(UserError) as raised:
        take(model, m, estimator, **settings(model, scheme, "difference"))
    assert all(word in str(raised.value) for word in words), raised.value


def test_difference_passes_over_steps_too_short_for_the_weights():
    """float32 tells numbers around 1000 apart by 6e-5: shorter steps give zero twice, which is no agreement."""
    model, m = Quadratic().float(), LinearCombiner(3, positive=False, start_weight=0.5)
    model.a, model.c = model.a.float(), model.c.float() + 1000
    with torch.no_grad():
        model.w += 1000
    expected, _, _ = take(model, m, "per_task", gamma=0.0)
    found, _, _ = take(model, m, "difference", gamma=0.0)
    close(found.outer.products, expected.outer.products, 1e-2)  # 6e-5 of a step of 3e-2 to 1e-1
