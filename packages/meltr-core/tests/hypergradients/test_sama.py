"""SAMA: the slope of the inner optimiser's step is that of the step which torch's optimisers really take."""

from __future__ import annotations

import copy

import pytest
import torch

from bilevel_cases import Recorder, flat, scheme_of, take, tiny
from dense_reference import Dense
from meltr import Bilevel, LinearCombiner
from meltr.errors import UserError
from meltr.optim.bert_adam import BertAdam

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, weight_decay=0.1),
    "momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "dampening": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, dampening=0.3),
    "dampening alone": lambda p: torch.optim.SGD(p, 0.1, dampening=0.3),
    "nesterov": lambda p: torch.optim.SGD(p, 0.1, momentum=0.8, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, 0.05, eps=1e-2),
    "adam, quick": lambda p: torch.optim.Adam(p, torch.tensor(0.05), betas=(0.5, 0.7), eps=1e-3),
    "adam, l2": lambda p: torch.optim.Adam(p, 0.05, weight_decay=0.3, eps=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.2, eps=1e-2),
    "adamw, one by one": lambda p: torch.optim.AdamW(p, 0.05, eps=1e-2, foreach=False),
    "bert_adam": lambda p: BertAdam(p, 0.05, weight_decay=0.2, eps=1e-2, max_grad_norm=None),
}
"""Adam's eps is large: with an empty state the step's slope is eps / (|u| + eps)^2, lost in rounding at 1e-8."""


def flat_weights(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def put_gradient(model, gradient: torch.Tensor) -> None:
    torch.nn.utils.vector_to_parameters(gradient, (grads := [torch.empty_like(p) for p in model.parameters()]))
    for parameter, own in zip(model.parameters(), grads, strict=True):
        parameter.grad = own


def warm_up(model, optimizer, steps: int) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        torch.manual_seed(step)
        torch.stack(list(model.losses().values())).sum().backward()
        optimizer.step()
    optimizer.zero_grad()


def slope_of_the_step(model, optimizer, gradient: torch.Tensor, h: float = 1e-6) -> torch.Tensor:
    """d(w - w')/du, elementwise, by central differences of what ``optimizer.step()`` does to copies of the weights."""
    ends = []
    for sign in (1, -1):
        own_model, own_optimizer = copy.deepcopy((model, optimizer))
        put_gradient(own_model, gradient + sign * h)
        own_optimizer.step()
        ends.append(flat_weights(own_model))
    return (ends[1] - ends[0]) / (2 * h)


@pytest.mark.parametrize("steps", [0, 1, 4])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_direction_is_v_times_the_slope_of_the_real_step(kind, steps):
    model, m = tiny()
    optimizer = OPTIMIZERS[kind](model.parameters())
    warm_up(model, optimizer, steps)
    dense = Dense(model, m, gamma=0.3)
    q = slope_of_the_step(model, optimizer, dense.u()) * dense.v()
    before = copy.deepcopy(optimizer.state_dict())
    result, found, inner = take(model, m, "forward", gamma=0.3, scheme=scheme_of("sama"), inner_optimizer=optimizer)
    g, expected = dense.j() @ q, dense.phi_gradient(q)
    # Differences at 1e-6 of weights of order 1: rounding gives 1e-10 over a step of 1e-2 to 1e-1.
    assert (result.outer.products - g).norm() <= 1e-6 * g.norm()
    assert (flat(found) - expected).norm() <= 1e-6 * expected.norm()
    torch.testing.assert_close(flat(inner), dense.u(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(optimizer.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("steps", [0, 3])
def test_groups_with_settings_of_their_own(steps):
    model, m = tiny()
    optimizer = torch.optim.AdamW(
        [
            {"params": model.head.parameters(), "lr": 0.1, "betas": (0.7, 0.9), "weight_decay": 0.0},
            {"params": model.body.parameters(), "lr": 0.01, "eps": 0.1},
        ],
        eps=1e-2,
    )
    warm_up(model, optimizer, steps)
    dense = Dense(model, m, gamma=0.3)
    expected = dense.phi_gradient(slope_of_the_step(model, optimizer, dense.u()) * dense.v())
    _, found, _ = take(model, m, "forward", gamma=0.3, scheme=scheme_of("sama"), inner_optimizer=optimizer)
    assert (flat(found) - expected).norm() <= 1e-6 * expected.norm()


def test_slope_at_adams_default_eps():
    """With a warm state the slope is far from zero; the state of a real run of `Bilevel`."""
    model, m = tiny()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    bilevel = Bilevel(model, m)
    for _ in range(5):
        optimizer.zero_grad()
        bilevel.backward(model.losses)
        optimizer.step()
    dense = Dense(model, m, gamma=0.3)
    g = dense.j() @ (slope_of_the_step(model, optimizer, dense.u()) * dense.v())
    result, _, _ = take(model, m, "per_task", gamma=0.3, scheme=scheme_of("sama"), inner_optimizer=optimizer)
    assert (result.outer.products - g).norm() <= 1e-5 * g.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_that_never_had_a_gradient_are_no_trouble(dtype):
    """Rows of an embedding that no batch has used: u, v and the optimiser's state are exactly zero there."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(50, 3), torch.nn.Linear(3, 2)).to(dtype)
    tokens = torch.randint(0, 10, (8,))

    def losses(model) -> list[torch.Tensor]:
        found = model(tokens)
        return [found.square().mean(), (found - 1).square().mean()]

    m = LinearCombiner(2, start_weight=0.5).to(dtype)
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(2):
        sum(losses(model)).backward()
        optimizer.step()
    exact = copy.deepcopy(model).double()
    exact_optimizer = torch.optim.Adam(exact.parameters(), 0.05)
    exact_optimizer.load_state_dict(optimizer.state_dict())
    dense = Dense(exact, copy.deepcopy(m).double(), lambda: losses(exact))
    expected = dense.j() @ (slope_of_the_step(exact, exact_optimizer, dense.u()) * dense.v())
    settings = {"gamma": 0.0, "scheme": scheme_of("sama"), "inner_optimizer": optimizer}
    result, _, _ = take(model, m, "per_task", compute=lambda: losses(model), **settings)
    assert result.outer.applied
    assert (result.outer.products - expected).norm() <= 1e-4 * expected.norm()


def test_hypergradient_descends_the_primary_loss_after_the_real_step():
    """To first order: a step of m against phi's gradient lowers <v, w'> by |gradient|^2 per unit."""
    model, m = tiny()
    optimizer = torch.optim.Adam(model.parameters(), 0.05, eps=1e-2)
    warm_up(model, optimizer, 3)
    dense = Dense(model, m, gamma=0.0)
    v = dense.v()
    _, found, _ = take(model, m, "forward", gamma=0.0, scheme=scheme_of("sama"), inner_optimizer=optimizer)
    phi = [p for p, g in zip(m.parameters(), found, strict=True) if g is not None]
    gradient, start = flat(found), torch.nn.utils.parameters_to_vector(phi).detach()
    ends, h = [], 1e-5
    for sign in (1, -1):
        torch.nn.utils.vector_to_parameters(start + sign * h * gradient / gradient.norm(), phi)
        own_model, own_optimizer = copy.deepcopy((model, optimizer))
        put_gradient(own_model, dense.u())
        own_optimizer.step()
        ends.append(v @ flat_weights(own_model))
    slope = (ends[0] - ends[1]) / (2 * h)
    assert slope.item() == pytest.approx(gradient.norm().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: None, ["no inner optimiser was given", "inner_optimizer=", "SGD, Adam, AdamW and BertAdam"]),
        (lambda p: torch.optim.RMSprop(p, 0.1), ["does not support RMSprop", "SGD, Adam, AdamW and BertAdam"]),
        (lambda p: torch.optim.Adam(p, 0.1, amsgrad=True), ["amsgrad", "aid-fp-lite"]),
        (lambda p: torch.optim.AdamW(p, 0.1, amsgrad=True), ["amsgrad", "aid-fp-lite"]),
        (lambda p: torch.optim.SGD(list(p)[:-1], 0.1), ["which it was not given", "inner_optimizer="]),
    ],
    ids=["none", "rmsprop", "adam amsgrad", "adamw amsgrad", "a weight missing"],
)
def test_optimisers_whose_step_it_cannot_differentiate_are_named(make, words):
    model, m = tiny()
    bilevel = Bilevel(
        model, m, Recorder(m.parameters()), scheme=scheme_of("sama"), inner_optimizer=make(model.parameters())
    )
    with pytest.raises(UserError) as raised:
        bilevel.backward(model.losses, outer=True)
    assert all(word in str(raised.value) for word in words), raised.value


def test_other_schemes_name_what_they_miss():
    model, _ = tiny()
    m = LinearCombiner(4).double()

    def error(scheme: str, **settings) -> str:
        bilevel = Bilevel(model, m, Recorder(m.parameters()), scheme=scheme_of(scheme), **settings)
        with pytest.raises(UserError) as raised:
            bilevel.backward(model.losses, outer=True)
        return str(raised.value)

    assert "stocbio" in (message := error("stocbio"))
    assert "independent batch" in message
    assert "others=" in message
    message = error("itd")
    assert "which it was not given" in message
    assert "inner_optimizer=" in message
    assert "ITD(step=" in message
    assert "inner_optimizer=" in error("itd", inner_optimizer=torch.optim.SGD(model.head.parameters(), 0.1))
