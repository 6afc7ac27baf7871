"""Scheme ``primary-step``: an inner step on the primary objective, whose gradient is the direction of an outer step."""

from __future__ import annotations

import copy

import pytest
import torch

from bilevel_cases import Quadratic, Recorder, Tiny, estimator_of, flat
from meltr import AIDFPLite, Bilevel, LossTransformer, PrimaryStep, Setup, sensitivities
from meltr.errors import LoopError

RATE = 0.01
ESTIMATORS = ["auto", "forward", "per_task", "one_sided", "difference", "double_backward"]


def loop(scheme=None, *, every: int = 2, gamma: float = 0.0, outer=Recorder, **settings):
    torch.manual_seed(1)
    model, m = Quadratic(), LossTransformer(3, width=8, heads=2, start="random").double()
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.9)
    bilevel = Bilevel(
        model, m, outer(m.parameters()), scheme=scheme or PrimaryStep(), every=every, gamma=gamma, **settings
    )
    return model, m, optimizer, bilevel


def step(model, optimizer, bilevel, **arguments):
    optimizer.zero_grad()
    result = bilevel.backward(model.losses, **arguments)
    optimizer.step()
    return result


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_g_is_j_v_and_the_step_descends_the_primary_loss(estimator):
    model, m, optimizer, bilevel = loop(estimator=estimator_of(estimator))
    for _ in range(2):
        step(model, optimizer, bilevel)
    w, losses = model.w.detach().clone(), model.losses().detach()
    jacobian = torch.einsum("tij,tj->ti", model.a, w - model.c)
    optimizer.zero_grad()
    result = bilevel.backward(model.losses)
    assert result.sensitivities.tolist() == [1, 0, 0]
    torch.testing.assert_close(model.w.grad, jacobian[0], rtol=1e-10, atol=1e-12)
    expected = jacobian @ jacobian[0]
    torch.testing.assert_close(result.outer.products, expected, rtol=1e-4, atol=1e-6)
    _, a = sensitivities(m, losses, create_graph=True)
    phi = torch.autograd.grad(-(a * expected).sum(), list(m.parameters()), allow_unused=True)
    torch.testing.assert_close(flat(bilevel.outer_optimizer.seen), flat(phi), rtol=1e-4, atol=1e-8)
    assert torch.equal(model.w.detach(), w)


def test_a_gradient_that_was_there_is_kept_and_is_not_part_of_q():
    model, _, _, bilevel = loop(estimator=estimator_of("per_task"))
    model.w.grad = torch.full_like(model.w, 5.0)
    result = bilevel.backward(model.losses, outer=True)
    jacobian = torch.einsum("tij,tj->ti", model.a, model.w.detach() - model.c)
    torch.testing.assert_close(model.w.grad, jacobian[0] + 5.0, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(result.outer.products, jacobian @ jacobian[0], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("gamma", [0.0, 0.3])
@pytest.mark.parametrize("estimator", ["forward", "per_task", "difference"])
def test_dropout_and_batchnorm_are_those_of_the_inner_step(estimator, gamma):
    """The same g as the paper's scheme at the same weights and draws, with buffers as one ordinary step leaves them."""
    found = []
    for scheme in (PrimaryStep(), AIDFPLite()):
        torch.manual_seed(0)
        model, m = Tiny().double(), LossTransformer(4, width=8, heads=2, start="random").double()
        bilevel = Bilevel(
            model, m, Recorder(m.parameters()), scheme=scheme, estimator=estimator_of(estimator), gamma=gamma
        )
        torch.manual_seed(3)
        result = bilevel.backward(model.losses, outer=True)
        found.append((result.outer.products, torch.rand(3), *model.buffers()))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_a_gradient_scaler_does_not_scale_g():
    found = []
    for scheme in (PrimaryStep(), AIDFPLite()):
        torch.manual_seed(0)
        model, m = Tiny().double(), LossTransformer(4, width=8, heads=2, start="random").double()
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        bilevel = Bilevel(
            model, m, Recorder(m.parameters()), scheme=scheme, estimator=estimator_of("per_task"),
            setup=Setup(scaler=scaler),
        )  # fmt: skip
        torch.manual_seed(3)
        found.append(bilevel.backward(model.losses, outer=True).outer.products)
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-10)


def test_the_direct_term_is_that_of_the_paper_s_scheme():
    found = []
    for scheme in (PrimaryStep(), AIDFPLite()):
        model, _, _, bilevel = loop(scheme, gamma=0.3, direct_term=True, estimator=estimator_of("per_task"))
        bilevel.backward(model.losses, outer=True)
        found.append(flat(bilevel.outer_optimizer.seen))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


def test_an_optimiser_that_steps_in_the_backward_pass_is_refused():
    model, _, _, bilevel = loop()
    model.w.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    with pytest.raises(LoopError, match="aid-fp-lite"):
        bilevel.backward(model.losses, outer=True)


def test_the_regulariser_is_part_of_the_step():
    model, m, optimizer, bilevel = loop(gamma=0.3)
    losses = model.losses().detach()
    combined, a = sensitivities(m, losses)
    expected = 0.3 * torch.sign(combined - losses.sum()) * (a - 1)
    expected[0] += 1
    assert torch.equal(step(model, optimizer, bilevel, outer=True).sensitivities, expected)


def test_one_step_in_k_descends_the_primary_loss():
    model, _, optimizer, bilevel = loop(every=3)
    results = [step(model, optimizer, bilevel) for _ in range(8)]
    alone = [result.sensitivities.tolist() == [1, 0, 0] for result in results]
    assert alone == [False, False, False, True, False, False, True, False]
    assert [result.outer is not None for result in results] == alone
    assert bilevel.outer_steps == 2


def test_a_window_of_micro_batches_stays_on_the_primary_loss():
    model, _, optimizer, bilevel = loop()
    alone, outer = [], []
    for _ in range(4):
        optimizer.zero_grad()
        for _ in range(2):
            result = bilevel.backward(model.losses, accumulate=2)
            alone.append(result.sensitivities.tolist() == [1, 0, 0])
            outer.append(result.outer is not None)
        optimizer.step()
    assert alone == [False] * 4 + [True] * 2 + [False] * 2
    assert outer == [False] * 4 + [True] + [False] * 3


def test_micro_batches_give_the_mean():
    model, _, _, bilevel = loop(estimator=estimator_of("forward"))
    halves = [lambda: model.losses() * 1.5, lambda: model.losses() * 0.5]
    result = bilevel.backward(halves, outer=True)
    jacobian = torch.einsum("tij,tj->ti", model.a, model.w.detach() - model.c)
    torch.testing.assert_close(result.outer.products, jacobian @ jacobian[0], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(model.w.grad, jacobian[0], rtol=1e-9, atol=1e-10)


def test_a_resumed_loop_goes_on_bit_by_bit():
    def made():
        return loop(outer=lambda phi: torch.optim.Adam(phi, 1e-2), average=0.5)

    model, m, optimizer, bilevel = made()
    for _ in range(3):
        step(model, optimizer, bilevel)
    other_model, other_m, other_optimizer, other = made()
    other_model.load_state_dict(model.state_dict())
    other_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other.load_state_dict(copy.deepcopy(bilevel.state_dict()))
    for _ in range(4):
        step(model, optimizer, bilevel)
        step(other_model, other_optimizer, other)
    assert torch.equal(model.w, other_model.w)
    assert all(torch.equal(p, q) for p, q in zip(m.parameters(), other_m.parameters(), strict=True))


@pytest.mark.parametrize("given", ["primary", "outer_part", "cross"])
def test_other_batches_are_refused(given):
    model, _, _optimizer, bilevel = loop()
    value = True if given == "cross" else model.losses
    compute = [model.losses, model.losses] if given == "cross" else model.losses
    with pytest.raises(LoopError, match=given):
        bilevel.backward(compute, outer=True, **{given: value})


def test_a_separate_outer_step_is_refused():
    model, _, _, bilevel = loop()
    with pytest.raises(ValueError, match="outer_step"):
        bilevel.outer_step(model.losses, model.losses)
