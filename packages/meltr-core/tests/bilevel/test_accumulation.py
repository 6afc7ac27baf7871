"""Pieces of a batch (gradient accumulation) give what the whole batch gives, with one piece's graph in memory."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bilevel_cases import ESTIMATORS, SCHEMES, Recorder, Tiny, estimator_of, flat, scheme_of, take, tiny
from dense_reference import Dense
from meltr import Bilevel
from meltr.errors import UserError

GAMMA = 0.3
SLICES = [slice(0, 3), slice(3, 6), slice(6, 9)]
EXACT = 1e-12
TOLERANCE = {"difference": 1e-6}
"""The estimator's ladder of steps ends at 1e-5: rounding decides which step is taken, and the last digits."""


def pieces(model: Tiny, count: int | None = None) -> list:
    return [lambda rows=rows: list(model.losses(rows).values())[:count] for rows in SLICES]


def joined(functions: list):
    """The same pieces as one function: their mean, drawn in the same order."""
    return lambda: torch.stack([torch.stack(list(each())) for each in functions]).mean(0)


def settings(model: nn.Module, scheme: str, count: int | None = None) -> dict:
    def others(number: int):
        return lambda: list(model.losses(slice(number, number + 4), shift=0.2).values())[:count]

    return {
        "gamma": GAMMA,
        "direct_term": True,
        "scheme": scheme_of(scheme, terms=2, step=0.3, damping=3.0),
        "inner_optimizer": torch.optim.AdamW(model.parameters(), 0.1, eps=0.1),
        "others": others if scheme == "stocbio" else None,
    }


def close(one: torch.Tensor, other: torch.Tensor, tolerance: float) -> None:
    assert (one - other).norm() <= tolerance * other.norm()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_pieces_equal_the_whole_batch(estimator, scheme):
    """Losses, a, g, phi's gradient, w's gradient, buffers and generators, with dropout and BatchNorm."""
    model, m = tiny()
    whole = copy.deepcopy(model)
    one, phi, inner = take(model, m, estimator, compute=pieces(model), **settings(model, scheme))
    after = torch.get_rng_state()
    other, expected_phi, expected = take(whole, m, estimator, compute=joined(pieces(whole)), **settings(whole, scheme))
    assert torch.equal(after, torch.get_rng_state())
    close(one.losses, other.losses, EXACT)
    close(one.combined, other.combined, EXACT)
    close(one.sensitivities, other.sensitivities, EXACT)
    # A difference of gradients at 1e-3 has rounding errors of 1e-13 of the gradients.
    curved = 1e-10 if scheme in ("aid-fp", "aid-cg", "stocbio") else 1e-11
    tolerance = TOLERANCE.get(estimator, curved)
    close(one.outer.products, other.outer.products, tolerance)
    close(flat(phi), flat(expected_phi), tolerance)
    close(flat(inner), flat(expected), EXACT)
    for (name, buffer), theirs in zip(model.named_buffers(), whole.buffers(), strict=True):
        torch.testing.assert_close(buffer, theirs, rtol=1e-14, atol=0, msg=name)
    for parameter, theirs in zip(model.parameters(), whole.parameters(), strict=True):
        assert torch.equal(parameter, theirs)


class Even(nn.Module):
    """Losses that are means over examples, each example on its own: pieces and one tensor are the same mathematics."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3))
        self.register_buffer("x", torch.randn(9, 3), persistent=False)
        self.register_buffer("y", torch.randint(0, 3, (9,)), persistent=False)

    def losses(self, rows: slice = slice(None)) -> dict[str, torch.Tensor]:
        logits = self.layers(self.x[rows])
        return {
            "ce": F.cross_entropy(logits, self.y[rows]),
            "wrong": F.cross_entropy(logits, 2 - self.y[rows]),
            "size": logits.square().mean(),
            "odd": logits.pow(3).mean(),
        }


def even():
    torch.manual_seed(0)
    model = Even().double()
    _, m = tiny()
    return model, m


@pytest.mark.parametrize("scheme", ["aid-fp-lite", "itd"])
@pytest.mark.parametrize("estimator", ["forward", "per_task", "double_backward"])
def test_pieces_equal_one_tensor_and_the_dense_formula(estimator, scheme):
    model, m = even()
    functions = [lambda rows=rows: model.losses(rows) for rows in SLICES]
    one, phi, inner = take(model, m, estimator, compute=functions, **settings(model, scheme))
    dense = Dense(model, m, gamma=GAMMA)
    q = dense.v() if scheme == "aid-fp-lite" else 0.3 * dense.v(dense.w - 0.3 * dense.u())
    close(one.losses, dense.losses(dense.w), EXACT)
    close(one.outer.products, dense.j() @ q, 1e-11)
    close(flat(inner), dense.u(), EXACT)
    if scheme == "aid-fp-lite":
        close(flat(phi), dense.phi_gradient(q, direct_term=True), 1e-11)
    else:
        close(flat(phi), dense.look_ahead_gradient(0.3, direct_term=True), 1e-11)


def test_averaging_the_combiner_over_pieces_would_be_something_else():
    """m(mean l) is not mean m(l): the tests above can fail."""
    model, m = even()

    def a(rows: slice) -> torch.Tensor:
        return torch.autograd.functional.jacobian(m, torch.stack(list(model.losses(rows).values())).detach())

    whole, own = a(slice(None)), [a(rows) for rows in SLICES]
    assert (sum(own) / 3 - whole).norm() > 0.01 * whole.norm()
    assert all((each - whole).norm() > 0.01 * whole.norm() for each in own)


def test_a_list_of_one_is_the_batch_itself():
    model, m = tiny()
    own = copy.deepcopy(model)
    one, phi, _ = take(own, m, "forward", compute=[own.losses])
    other, expected, _ = take(model, m, "forward")
    assert torch.equal(one.losses, other.losses)
    close(flat(phi), flat(expected), EXACT)


def test_no_pieces_are_an_error():
    model, m = tiny()
    with pytest.raises(ValueError, match="no loss function"):
        Bilevel(model, m).backward([])


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("estimator", ["forward", "per_task", "auto"])
def test_buffers_move_once_a_piece_as_in_ordinary_accumulation(estimator, count):
    """Also in an outer step whose task gradients serve the inner one (two losses, one backward per task)."""
    model, m = tiny()
    m = type(m)(count, width=8, heads=2, start="random").double()
    plain = copy.deepcopy(model)
    torch.manual_seed(7)
    for each in pieces(plain):
        each()
    take(model, m, estimator, compute=pieces(model, count))
    assert model.body[2].num_batches_tracked == 3
    for buffer, theirs in zip(model.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(buffer, theirs, rtol=1e-14, atol=0)


@pytest.mark.parametrize("estimator", ["forward", "per_task"])
def test_an_inner_step_between_outer_steps_is_ordinary_accumulation(estimator):
    model, m = tiny()
    plain = copy.deepcopy(model)
    torch.manual_seed(7)
    loss = m(joined(pieces(plain))())
    loss.backward()
    bilevel = Bilevel(model, m, Recorder(m.parameters()), estimator=estimator_of(estimator))
    torch.manual_seed(7)
    result = bilevel.backward(pieces(model), outer=False)
    assert result.outer is None
    close(result.combined, loss.detach(), EXACT)
    close(flat(p.grad for p in model.parameters()), flat(p.grad for p in plain.parameters()), EXACT)


def test_second_order_graphs_of_pieces_are_refused():
    model, m = tiny()
    scheme = scheme_of("aid-fp", hessian="double_backward")
    bilevel = Bilevel(model, m, Recorder(m.parameters()), scheme=scheme)
    with pytest.raises(UserError, match="no gradient accumulation") as raised:
        bilevel.backward(pieces(model), outer=True)
    assert "hessian=difference" in str(raised.value)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("split", [False, True])
def test_outer_part_is_an_outer_step_on_that_part_alone(estimator, split):
    model, m = even()

    def part():
        return model.losses(slice(0, 4))

    compute = [lambda rows=rows: model.losses(rows) for rows in SLICES] if split else model.losses
    result, phi, inner = take(model, m, estimator, compute=compute, outer_part=part, gamma=GAMMA)
    of_part, expected, _ = take(model, m, estimator, compute=part, gamma=GAMMA)
    close(result.outer.products, of_part.outer.products, EXACT)
    close(flat(phi), flat(expected), EXACT)
    dense_part, dense = Dense(model, m, part, gamma=GAMMA), Dense(model, m)
    close(result.outer.products, dense_part.j() @ dense_part.v(), 1e-6 if estimator == "difference" else 1e-10)
    close(flat(inner), dense.u(), EXACT)
    close(result.losses, dense.losses(dense.w), EXACT)


def test_outer_part_leaves_buffers_as_the_inner_forward_does():
    model, m = tiny()
    plain = copy.deepcopy(model)
    torch.manual_seed(7)
    plain.losses()
    take(model, m, "forward", outer_part=lambda: model.losses(slice(0, 4)))
    for buffer, theirs in zip(model.buffers(), plain.buffers(), strict=True):
        assert torch.equal(buffer, theirs)


class Alive:
    """Counts the pieces whose saved activations are in memory while another one is evaluated."""

    def __init__(self) -> None:
        self.now: dict[int, int] = {}
        self.most = 0

    def watch(self, number: int, compute):
        alive = self

        class Held:
            def __init__(self, tensor: torch.Tensor) -> None:
                self.tensor = tensor.detach()  # else an output would hold the node that holds it
                alive.now[number] = alive.now.get(number, 0) + 1

            def __del__(self) -> None:
                alive.now[number] -= 1

        def watched():
            with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
                losses = compute()
            self.most = max(self.most, sum(count > 0 for count in self.now.values()))
            return losses

        return watched


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("scheme", ["aid-fp-lite", "aid-fp", "itd", "sama"])
def test_one_piece_s_graph_is_alive_at_a_time(scheme, estimator):
    model, m = tiny()
    alive = Alive()
    functions = [alive.watch(number, each) for number, each in enumerate(pieces(model))]
    take(model, m, estimator, compute=functions, **settings(model, scheme))
    assert alive.most == 1
    assert not any(alive.now.values())
    take(model, m, estimator, compute=joined(functions), **settings(model, scheme))
    assert alive.most == 3  # so the count sees graphs
