"""Every scheme on quadratic losses with a linear combiner, where the inner optimum and its derivative are known."""

from __future__ import annotations

import itertools

import pytest
import torch

from bilevel_cases import ESTIMATORS, Quadratic, scheme_of, take
from dense_reference import galerkin, series
from meltr import Bilevel, LinearCombiner

TASKS, SIZE = 6, 4
A = torch.tensor([0.9, 0.4, 0.7, 0.3, 0.5, 0.6], dtype=torch.float64)
"""Weights of the losses: all differ, so that a mix-up shows."""
TOLERANCE = 1e-8
"""Of differences, exact on quadratics but for rounding: 1e-16 of a loss over a step of 1e-4."""


def problem() -> tuple[Quadratic, LinearCombiner]:
    model, m = Quadratic(TASKS, SIZE, ridge=1.0), LinearCombiner(TASKS, positive=False).double()
    with torch.no_grad():
        m.raw.copy_(A)
    return model, m


def jacobian(model: Quadratic) -> torch.Tensor:
    return torch.einsum("tij,tj->ti", model.a, (model.w - model.c).detach())


def hessian(model: Quadratic) -> torch.Tensor:
    return torch.einsum("t,tij->ij", A, model.a)


def products(model, m, scheme, *, estimator="forward", others=None, **options) -> torch.Tensor:
    """g as the engine finds it; phi's gradient must be minus that, because m is linear."""
    result, (found,), _ = take(model, m, estimator, others=others, gamma=0.0, scheme=scheme_of(scheme, **options))
    assert found is None if scheme == "none" else torch.equal(found, -result.outer.products)
    return result.outer.products


def direction(model, m, scheme, **options) -> torch.Tensor:
    """q: with more losses than weights J has full column rank, and g = J q can be solved for it."""
    return torch.linalg.lstsq(jacobian(model), products(model, m, scheme, **options)).solution


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    assert (found - expected).norm() <= tolerance * expected.norm()


def derivative_of_the_optimum(model: Quadratic) -> torch.Tensor:
    """d l_0(w*(a)) / da, through the solution of the linear system that w* solves."""
    a = A.clone().requires_grad_()
    optimum = torch.linalg.solve(
        torch.einsum("t,tij->ij", a, model.a), torch.einsum("t,tij,tj->i", a, model.a, model.c)
    )
    apart = optimum - model.c[0]
    (found,) = torch.autograd.grad((apart @ model.a[0] @ apart) / 2, a)
    with torch.no_grad():
        model.w.copy_(optimum)
    return found


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("hessian_by", ["difference", "double_backward"])
def test_conjugate_gradients_at_the_inner_optimum_give_its_derivative(estimator, hessian_by):
    """n iterations suffice in n dimensions."""
    model, m = problem()
    expected = derivative_of_the_optimum(model)
    found = -products(model, m, "aid-cg", estimator=estimator, terms=SIZE, hessian=hessian_by)
    close(found, expected, 1e-6)
    fewer = -products(model, m, "aid-cg", estimator=estimator, terms=SIZE - 2, hessian=hessian_by)
    assert (fewer - expected).norm() > 1e-4 * expected.norm()  # so the test above can fail


@pytest.mark.parametrize("scheme", ["aid-fp", "stocbio"])
def test_series_at_the_inner_optimum_tends_to_its_derivative(scheme):
    model, m = problem()
    expected = derivative_of_the_optimum(model)
    eigenvalues = torch.linalg.eigvalsh(hessian(model))
    step = float(1 / eigenvalues.max())
    rate = float(1 - step * eigenvalues.min())
    terms = int(torch.ceil(torch.log(torch.tensor(1e-7)) / torch.log(torch.tensor(rate))))
    found = -products(model, m, scheme, others=lambda number: model.losses, terms=terms, step=step)
    close(found, expected, 1e-6)


def test_fixed_point_error_decays_by_one_minus_step_times_eigenvalue():
    """In every eigendirection k of H, exactly, from one term to the next."""
    model, m = problem()
    v = jacobian(model)[0]
    eigenvalues, basis = torch.linalg.eigh(hessian(model))
    step = float(1.2 / eigenvalues.max())
    limit = torch.linalg.solve(hessian(model), v)
    errors = [
        basis.T @ (limit - direction(model, m, "aid-fp", terms=terms, step=step, hessian="double_backward"))
        for terms in range(6)
    ]
    for one, following in itertools.pairwise(errors):
        torch.testing.assert_close(following, (1 - step * eigenvalues) * one, rtol=1e-8, atol=1e-10)
        assert following.norm() < one.norm()


@pytest.mark.parametrize("terms", [0, 1, 3])
def test_fixed_point_defaults_and_factor_in_front(terms):
    """Scaled by the step by default; AuxiLearn's code leaves it out."""
    model, m = problem()
    v, step = jacobian(model)[0], 0.05
    expected = series(hessian(model), v, step, terms)
    close(direction(model, m, "aid-fp", terms=terms, step=step), expected)
    close(direction(model, m, "aid-fp", terms=terms, step=step, scaled=False), expected / step)
    close(direction(model, m, "aid-fp"), series(hessian(model), v, 1e-4, 3))


@pytest.mark.parametrize("damping", [0.0, 0.8])
@pytest.mark.parametrize("terms", [1, 2, 3, 4])
def test_conjugate_gradient_iterates_are_galerkin_solutions(terms, damping):
    model, m = problem()
    v = jacobian(model)[0]
    damped = hessian(model) + damping * torch.eye(SIZE, dtype=torch.float64)
    found = direction(model, m, "aid-cg", terms=terms, damping=damping)
    candidates = [galerkin(damped, v, order) for order in range(1, terms + 1)]
    close(found, min(candidates, key=lambda q: (damped @ q - v).norm()), 1e-7)


def test_conjugate_gradients_beyond_convergence_stay_there():
    model, m = problem()
    expected = torch.linalg.solve(hessian(model), jacobian(model)[0])
    close(direction(model, m, "aid-cg", terms=40), expected, 1e-7)


def signed(values: list[float], start: list[float]) -> tuple[Quadratic, LinearCombiner, torch.Tensor, torch.Tensor]:
    """A diagonal H with the eigenvalues given, and v = grad l_0 = `start`; m is the plain sum."""
    size = len(values)
    model, m = Quadratic(size + 2, size), LinearCombiner(size + 2, positive=False, start_weight=1.0).double()
    h = torch.diag(torch.tensor(values, dtype=torch.float64))
    v = torch.tensor(start, dtype=torch.float64)
    with torch.no_grad():
        model.a[0] = torch.eye(size)
        model.c[0] = model.w - v
        model.a[1] += h - model.a.sum(0)
    return model, m, h, v


@pytest.mark.parametrize("hessian_by", ["difference", "double_backward"])
def test_conjugate_gradients_with_negative_curvature_at_once_leave_the_primary_gradient(hessian_by):
    model, m, h, v = signed([-1.0, 0.5, 0.2], [2.0, 1.0, 1.0])
    assert v @ h @ v < 0
    close(direction(model, m, "aid-cg", terms=3, hessian=hessian_by), v)
    zero_model, m, h, v = signed([1.0, -1.0], [1.0, 1.0])
    assert v @ h @ v == 0
    close(direction(zero_model, m, "aid-cg", terms=3, hessian="double_backward"), v)


def test_conjugate_gradients_stop_where_curvature_turns_negative():
    """First direction: positive curvature; second: negative. The first iterate is returned, however long one asks."""
    model, m, h, v = signed([3.0, 2.0, -0.3], [1.0, 1.0, 1.0])
    first = galerkin(h, v, 1)
    residual = v - h @ first
    second = residual + (residual @ residual) / (v @ v) * v
    assert v @ h @ v > 0 > second @ h @ second
    for terms in (1, 2, 3, 10):
        close(direction(model, m, "aid-cg", terms=terms), first, 1e-7)


def test_conjugate_gradients_return_the_iterate_with_the_smallest_residual():
    """On the way to the solution residuals may grow: here the second iterate's is seven times the first one's."""
    model, m, h, v = signed([0.01, 2.0, 4.0], [8.0, 8.0, 0.5])
    first, second = galerkin(h, v, 1), galerkin(h, v, 2)
    assert (h @ second - v).norm() > 6 * (h @ first - v).norm()
    close(direction(model, m, "aid-cg", terms=2), first, 1e-7)
    close(direction(model, m, "aid-cg", terms=3), torch.linalg.solve(h, v), 1e-5)


def test_damping_makes_an_indefinite_system_solvable():
    model, m, h, v = signed([3.0, 2.0, -0.3], [1.0, 1.0, 1.0])
    expected = torch.linalg.solve(h + 0.5 * torch.eye(3), v)
    close(direction(model, m, "aid-cg", terms=3, damping=0.5), expected, 1e-6)


@pytest.mark.parametrize("hessian_by", ["difference", "double_backward"])
def test_stochastic_series_applies_every_batch_once_in_the_order_of_the_paper(hessian_by):
    """Algorithm 3 of Ji et al.: r_Q = v, r_(i-1) = (I - eta H_Bi) r_i for i = Q, ..., 1, v_Q = eta sum_i r_i."""
    model, m = problem()
    batches = [Quadratic(TASKS, SIZE, seed=seed, ridge=1.0) for seed in (11, 12, 13)]  # B_Q, ..., B_1
    drawn: list[int] = []

    def others(number: int):
        drawn.append(number)

        def compute() -> torch.Tensor:
            apart = model.w - batches[number].c
            return torch.einsum("ti,tij,tj->t", apart, batches[number].a, apart) / 2

        return compute

    eta, v = 0.3, jacobian(model)[0]
    found = direction(model, m, "stocbio", others=others, step=eta, hessian=hessian_by)  # Q = 3 is the default
    assert drawn == [0, 1, 2]
    matrices = [hessian(batch) for batch in batches]
    r = [v]
    for matrix in matrices:
        r.append(r[-1] - eta * matrix @ r[-1])
    close(found, eta * sum(r), 1e-7)
    # Products that grow at the other end, and one matrix for all, are something else:
    one = torch.eye(SIZE, dtype=torch.float64)
    f = [one - eta * matrix for matrix in matrices]
    other_end = eta * (v + f[0] @ v + f[0] @ f[1] @ v + f[0] @ f[1] @ f[2] @ v)
    for wrong in (other_end, series(matrices[0], v, eta, 3), eta * sum(r[1:])):
        assert (wrong - found).norm() > 1e-2 * found.norm()


def test_stochastic_series_is_unbiased():
    """Two equally likely batches a factor: the mean over all 8 draws is the series of the mean Hessian."""
    model, m = problem()
    pair = [Quadratic(TASKS, SIZE, seed=seed, ridge=1.0) for seed in (11, 12)]

    def with_draw(draw: tuple[int, ...]) -> torch.Tensor:
        def others(number: int):
            batch = pair[draw[number]]
            return lambda: torch.einsum("ti,tij,tj->t", model.w - batch.c, batch.a, model.w - batch.c) / 2

        return direction(model, m, "stocbio", others=others, step=0.3, hessian="double_backward")

    mean = sum(with_draw(draw) for draw in itertools.product((0, 1), repeat=3)) / 8
    close(mean, series((hessian(pair[0]) + hessian(pair[1])) / 2, jacobian(model)[0], 0.3, 3))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_look_ahead_on_quadratics_closed_form(estimator):
    """q = alpha A_0 (w - alpha J' a - c_0)."""
    model, m = problem()
    j, alpha = jacobian(model), 0.15
    expected = alpha * model.a[0] @ ((model.w - model.c[0]).detach() - alpha * j.T @ A)
    close(products(model, m, "itd", estimator=estimator, step=alpha), j @ expected)


def test_no_direction_leaves_the_combiner_alone():
    """It has no gradient, so that an optimiser leaves it alone too."""
    model, m = problem()
    assert torch.equal(products(model, m, "none"), torch.zeros(TASKS, dtype=torch.float64))
    bilevel = Bilevel(model, m, torch.optim.Adam(m.parameters(), 0.1), every=1, scheme=scheme_of("none"), gamma=0.3)
    for _ in range(3):
        bilevel.backward(model.losses)
    assert bilevel.outer_steps == 2
    assert torch.equal(m.raw.detach(), A)


@pytest.mark.parametrize("scheme", ["aid-fp-lite", "aid-fp", "aid-cg", "stocbio", "itd", "sama"])
def test_no_primary_gradient_means_no_direction(scheme):
    """The look-ahead apart: one step on the other losses leaves the primary optimum."""
    model, m = problem()
    with torch.no_grad():
        model.w.copy_(model.c[0])
    j, rate = jacobian(model), 0.1
    expected = torch.zeros(TASKS, dtype=torch.float64)
    if scheme == "itd":
        expected = j @ (rate * model.a[0] @ (-rate * j.T @ A))
    optimizer = torch.optim.SGD(model.parameters(), rate)
    result, (found,), _ = take(
        model, m, "forward", gamma=0.0, scheme=scheme_of(scheme), inner_optimizer=optimizer,
        others=lambda number: model.losses,
    )  # fmt: skip
    assert result.outer.applied
    torch.testing.assert_close(found, -expected, rtol=1e-12, atol=1e-15)
