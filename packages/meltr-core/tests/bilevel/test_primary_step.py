"""Scheme ``primary-step``: an inner step on the primary objective that is kept; g is what it did to every loss."""

from __future__ import annotations

import copy

import pytest
import torch

from bilevel_cases import Quadratic, Recorder, flat
from meltr import AIDFPLite, Bilevel, LossTransformer, PrimaryStep, sensitivities
from meltr.errors import LoopError

RATE = 0.01


def loop(scheme=None, *, every: int = 2, rate: float = RATE, gamma: float = 0.0, outer=Recorder, **settings):
    torch.manual_seed(1)
    model, m = Quadratic(), LossTransformer(3, width=8, heads=2, start="random").double()
    optimizer = torch.optim.SGD(model.parameters(), rate)
    bilevel = Bilevel(
        model, m, outer(m.parameters()), scheme=scheme or PrimaryStep(), every=every, gamma=gamma, **settings
    )
    return model, m, optimizer, bilevel


def step(model, optimizer, bilevel, **arguments):
    optimizer.zero_grad()
    result = bilevel.backward(model.losses, **arguments)
    optimizer.step()
    return result


def test_g_is_the_drop_of_every_loss_in_a_step_on_the_primary_loss():
    model, m, optimizer, bilevel = loop()
    for _ in range(2):
        step(model, optimizer, bilevel)
    w, before = model.w.detach().clone(), model.losses().detach()
    v = model.a[0] @ (w - model.c[0])
    result = step(model, optimizer, bilevel)
    assert result.sensitivities.tolist() == [1, 0, 0]
    assert result.outer is None
    torch.testing.assert_close(model.w.detach(), w - RATE * v, rtol=1e-12, atol=1e-12)
    found = bilevel.after_step()
    apart = w - RATE * v - model.c
    expected = before - torch.einsum("ti,tij,tj->t", apart, model.a, apart) / 2
    torch.testing.assert_close(found.products, expected, rtol=1e-10, atol=1e-12)
    _, a = sensitivities(m, before, create_graph=True)
    phi = torch.autograd.grad(-(a * expected).sum(), list(m.parameters()), allow_unused=True)
    torch.testing.assert_close(flat(bilevel.outer_optimizer.seen), flat(phi), rtol=1e-10, atol=1e-14)


def test_it_tends_to_the_exact_g_as_the_step_gets_shorter():
    gaps = []
    for rate in (1e-2, 1e-3, 1e-4):
        model, _, optimizer, bilevel = loop(rate=rate)
        exact = loop(AIDFPLite(), rate=rate)[3]
        exact_g = exact.backward(exact._setup.model.losses, outer=True).outer.products
        step(model, optimizer, bilevel, outer=True)
        g = bilevel.after_step().products / rate
        gaps.append(float((g - exact_g).norm() / exact_g.norm()))
    assert gaps[0] > 5 * gaps[1] > 25 * gaps[2]


def test_the_regulariser_is_part_of_the_step():
    model, m, optimizer, bilevel = loop(gamma=0.3)
    losses = model.losses().detach()
    combined, a = sensitivities(m, losses)
    expected = 0.3 * torch.sign(combined - losses.sum()) * (a - 1)
    expected[0] += 1
    assert torch.equal(step(model, optimizer, bilevel, outer=True).sensitivities, expected)


def test_one_step_in_k_descends_the_primary_loss_and_the_next_call_reports_it():
    model, _, optimizer, bilevel = loop(every=3)
    results = [step(model, optimizer, bilevel) for _ in range(8)]
    alone = [result.sensitivities.tolist() == [1, 0, 0] for result in results]
    assert alone == [False, False, False, True, False, False, True, False]
    assert [result.outer is not None for result in results] == [False] * 4 + [True, False, False, True]
    assert bilevel.outer_steps == 2


def test_a_window_of_micro_batches_stays_on_the_primary_loss():
    model, _, optimizer, bilevel = loop()
    found = []
    for _ in range(3):
        optimizer.zero_grad()
        for _ in range(2):
            found.append(bilevel.backward(model.losses, accumulate=2).sensitivities.tolist() == [1, 0, 0])
        optimizer.step()
    assert found == [False] * 4 + [True] * 2
    assert bilevel.after_step() is not None


def test_a_saved_state_holds_the_outer_step_that_was_due():
    model, _, optimizer, bilevel = loop(outer=lambda phi: torch.optim.Adam(phi, 1e-2))
    for _ in range(3):
        step(model, optimizer, bilevel)
    other_model = copy.deepcopy(model)
    _, m, _, other = loop(outer=lambda phi: torch.optim.Adam(phi, 1e-2))
    other.load_state_dict(copy.deepcopy(bilevel.state_dict()))
    assert bilevel.outer_steps == other.outer_steps == 1
    other_optimizer = torch.optim.SGD(other_model.parameters(), RATE)
    for _ in range(3):
        step(model, optimizer, bilevel)
        other._setup.model.w = other_model.w
        step(other_model, other_optimizer, other)
    assert torch.equal(model.w, other_model.w)
    assert all(torch.equal(p, q) for p, q in zip(bilevel.combiner.parameters(), m.parameters(), strict=True))


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
