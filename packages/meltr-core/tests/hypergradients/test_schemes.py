"""Every scheme on a network with a loss transformer, against whole Jacobians and Hessians in float64."""

from __future__ import annotations

import pytest
import torch

from bilevel_cases import ESTIMATORS, flat, scheme_of, take, tiny
from dense_reference import Dense, galerkin, series

GAMMA = 0.3
EXACT = 1e-9
BY_DIFFERENCE = 1e-5
"""Differences of gradients at a distance of 1e-4: rounding of float32 over it, and 1e-8 times third over second."""


def other_batches(model):
    return lambda number: lambda: model.losses(slice(number, number + 5), shift=0.3 * (number + 1))


def held_out(model):
    return lambda: [model.losses(slice(2, 9), shift=-0.5)["ce"]]


def dense_others(model, m, dense: Dense, terms: int) -> list[torch.Tensor]:
    """The Hessians of the independent batches, each with the random numbers that come when it is drawn."""
    torch.set_rng_state(dense.start)
    with torch.no_grad():
        model.losses()
        if dense.primary is not None:
            dense.primary()
    matrices = []
    for number in range(terms):
        compute, start = other_batches(model)(number), torch.get_rng_state()
        matrices.append(Dense(model, m, compute, start=start).h())
        torch.set_rng_state(start)
        with torch.no_grad():
            compute()
    return matrices


def expected_direction(scheme: str, model, m, dense: Dense) -> tuple[torch.Tensor, dict]:
    """q from the papers' formulas, and the options that ask for it."""
    v = dense.v()
    if scheme == "aid-fp":
        return series(dense.h(), v, 0.4, 3), {"terms": 3, "step": 0.4}
    if scheme == "stocbio":
        return series(dense_others(model, m, dense, 3), v, 0.4, 3), {"terms": 3, "step": 0.4}
    if scheme == "aid-cg":
        h = dense.h()
        damping = float(0.3 - torch.linalg.eigvalsh(h).min())
        damped = h + damping * torch.eye(len(v), dtype=v.dtype)
        candidates = [galerkin(damped, v, order) for order in (1, 2, 3)]
        return min(candidates, key=lambda q: (damped @ q - v).norm()), {"terms": 3, "damping": damping}
    if scheme == "itd":
        return 0.5 * dense.v(dense.w - 0.5 * dense.u()), {"step": 0.5}
    return {"aid-fp-lite": v, "none": torch.zeros_like(v)}[scheme], {}


@pytest.mark.parametrize("batch", ["shared", "held out"])
@pytest.mark.parametrize("hessian", ["difference", "double_backward"])
@pytest.mark.parametrize("scheme", ["aid-fp-lite", "aid-fp", "aid-cg", "stocbio", "itd", "none"])
def test_scheme_equals_its_formula(scheme, hessian, batch):
    model, m = tiny()
    primary = held_out(model) if batch == "held out" else None
    dense = Dense(model, m, gamma=GAMMA, primary=primary)
    q, options = expected_direction(scheme, model, m, dense)
    g = dense.j() @ q
    result, found, inner = take(
        model, m, "forward", primary=primary, others=other_batches(model), gamma=GAMMA,
        scheme=scheme_of(scheme, hessian=hessian, **options),
    )  # fmt: skip
    tolerance = BY_DIFFERENCE if hessian == "difference" and scheme in ("aid-fp", "aid-cg", "stocbio") else EXACT
    assert (result.outer.products - g).norm() <= tolerance * g.norm()
    if scheme == "none":
        assert all(part is None for part in found)
    else:
        expected = dense.phi_gradient(q)
        assert (flat(found) - expected).norm() <= tolerance * expected.norm()
    torch.testing.assert_close(flat(inner), dense.u(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("batch", ["shared", "held out"])
@pytest.mark.parametrize("scheme", ["aid-fp", "aid-cg", "stocbio", "none"])
def test_direct_term_is_added(scheme, batch):
    model, m = tiny()
    primary = held_out(model) if batch == "held out" else None
    dense = Dense(model, m, gamma=GAMMA, primary=primary)
    q, options = expected_direction(scheme, model, m, dense)
    _, found, _ = take(
        model, m, "forward", primary=primary, others=other_batches(model), gamma=GAMMA, direct_term=True,
        scheme=scheme_of(scheme, hessian="double_backward", **options),
    )  # fmt: skip
    expected = dense.phi_gradient(q, direct_term=True)
    assert (flat(found) - expected).norm() <= EXACT * expected.norm()


@pytest.mark.parametrize("direct_term", [False, True])
@pytest.mark.parametrize("batch", ["shared", "held out"])
@pytest.mark.parametrize("rates", ["step", "optimiser"])
def test_look_ahead_is_the_derivative_through_the_step(rates, batch, direct_term):
    """Autograd through w' = w - alpha u(phi), also where alpha differs between parameters."""
    model, m = tiny()
    primary = held_out(model) if batch == "held out" else None
    dense = Dense(model, m, gamma=GAMMA, primary=primary)
    groups = [{"params": model.body.parameters(), "lr": 0.7}, {"params": model.head.parameters(), "lr": 0.2}]
    optimizer = torch.optim.SGD(groups)
    one = torch.ones(dense.w.numel(), dtype=torch.float64)
    rate = torch.where(torch.arange(len(one)) < sum(p.numel() for p in model.body.parameters()), 0.7 * one, 0.2 * one)
    if rates == "step":
        rate, optimizer = torch.full_like(rate, 0.5), None
    _, found, _ = take(
        model, m, "forward", primary=primary, gamma=GAMMA, direct_term=direct_term, inner_optimizer=optimizer,
        scheme=scheme_of("itd", step=0.5 if rates == "step" else None),
    )  # fmt: skip
    expected = dense.look_ahead_gradient(rate, direct_term=direct_term)
    assert (flat(found) - expected).norm() <= EXACT * expected.norm()


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("scheme", ["aid-fp", "aid-cg", "stocbio", "itd"])
def test_scheme_with_every_estimator(scheme, estimator):
    model, m = tiny()
    dense = Dense(model, m, gamma=GAMMA)
    q, options = expected_direction(scheme, model, m, dense)
    _, found, _ = take(
        model, m, estimator, others=other_batches(model), gamma=GAMMA,
        scheme=scheme_of(scheme, hessian="double_backward", **options),
    )  # fmt: skip
    expected = dense.phi_gradient(q)
    # In float64 the difference's ladder of steps ends at 1e-5, with an error of order 1e-10.
    tolerance = 1e-7 if estimator == "difference" else EXACT
    assert (flat(found) - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("hessian", ["difference", "double_backward"])
@pytest.mark.parametrize("scheme", ["aid-fp", "aid-cg", "stocbio"])
def test_kept_task_gradients_serve_every_scheme(scheme, hessian):
    """With two losses the rows of J give u, v and g."""
    model, m = tiny()
    two = type(m)(2, width=8, heads=2, feedforward=8, scale_hidden=16, start="random").double()

    def losses() -> list[torch.Tensor]:
        return list(model.losses().values())[:2]

    def others(number: int):
        return lambda: list(other_batches(model)(number)().values())[:2]

    dense = Dense(model, two, losses, gamma=GAMMA)
    v = dense.v()
    if scheme == "stocbio":
        torch.set_rng_state(dense.start)
        losses()
        q = 0.4 * (v + v - 0.4 * Dense(model, two, others(0), start=torch.get_rng_state()).h() @ v)
    elif scheme == "aid-fp":
        q = series(dense.h(), v, 0.4, 1)
    else:
        q = galerkin(dense.h() + 5 * torch.eye(len(v), dtype=v.dtype), v, 1)
    chosen = scheme_of(scheme, terms=1, step=0.4, damping=5.0, hessian=hessian)
    result, found, inner = take(model, two, "auto", compute=losses, others=others, gamma=GAMMA, scheme=chosen)
    expected = dense.phi_gradient(q)
    tolerance = BY_DIFFERENCE if hessian == "difference" else EXACT
    assert (flat(found) - expected).norm() <= tolerance * expected.norm()
    torch.testing.assert_close(flat(inner), dense.u(), rtol=1e-10, atol=1e-12)
    assert (result.outer.products - dense.j() @ q).norm() <= tolerance * (dense.j() @ q).norm()


def test_the_combiner_s_curvature_counts():
    """H = sum_t a_t grad^2 l_t + J' (d^2 m) J: without its second part the tests above would fail."""
    model, m = tiny()
    dense = Dense(model, m, gamma=GAMMA)
    a = torch.autograd.functional.jacobian(m, dense.losses(dense.w))
    linear_part = torch.autograd.functional.hessian(lambda w: a @ dense.losses(w), dense.w)
    right = dense.j() @ series(dense.h(), dense.v(), 0.4, 3)
    wrong = dense.j() @ series(linear_part, dense.v(), 0.4, 3)
    assert (right - wrong).norm() > 0.02 * right.norm()


def test_difference_of_gradients_has_second_order(monkeypatch):
    """Ten times the distance, a hundred times the error: nothing but truncation is in it."""
    model, m = tiny()
    dense = Dense(model, m, gamma=GAMMA)
    expected = dense.j() @ series(dense.h(), dense.v(), 1.0, 1)
    errors = []
    for distance in (1e-2, 1e-3):
        monkeypatch.setattr("meltr.hypergradients.hessian.DISPLACEMENT", distance)
        result, _, _ = take(model, m, "forward", gamma=GAMMA, scheme=scheme_of("aid-fp", terms=1, step=1.0))
        errors.append(float((result.outer.products - expected).norm()))
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.1)


@pytest.mark.parametrize("hessian", ["difference", "double_backward"])
@pytest.mark.parametrize("scheme", ["aid-fp-lite", "aid-fp", "aid-cg", "itd"])
def test_dropout_in_the_combiner_is_one_draw_an_outer_step(scheme, hessian):
    """Two draws a Hessian product would put their difference, divided by the small distance, into q."""
    model, m = tiny()
    m.encoder.dropout.p = m.encoder.dropout1.p = m.encoder.dropout2.p = 0.1
    dense = Dense(model, m, gamma=GAMMA)
    q, options = expected_direction(scheme, model, m, dense)
    _, found, _ = take(
        model, m, "forward", gamma=GAMMA, direct_term=scheme != "itd",
        scheme=scheme_of(scheme, hessian=hessian, **options),
    )  # fmt: skip
    expected = dense.phi_gradient(q, direct_term=scheme != "itd")
    tolerance = BY_DIFFERENCE if hessian == "difference" and scheme in ("aid-fp", "aid-cg") else EXACT
    assert (flat(found) - expected).norm() <= tolerance * expected.norm()


def test_dropout_in_the_combiner_with_independent_batches():
    model, m = tiny()
    m.encoder.dropout.p = m.encoder.dropout1.p = m.encoder.dropout2.p = 0.1
    found = {}
    for hessian in ("difference", "double_backward"):
        chosen = scheme_of("stocbio", step=0.4, hessian=hessian)
        _, phi, _ = take(model, m, "forward", others=other_batches(model), scheme=chosen)
        found[hessian] = flat(phi)
    gap = (found["difference"] - found["double_backward"]).norm()
    assert gap <= BY_DIFFERENCE * found["double_backward"].norm()
