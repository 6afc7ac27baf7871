"""How long the graphs of the losses live: what an outer step keeps in memory beyond an ordinary training step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bilevel_cases import (
    ESTIMATORS,
    RELATIVE,
    SCHEMES,
    ConvNet,
    Encoder,
    build,
    estimator_of,
    flat,
    scheme_of,
    take,
    tiny,
)
from dense_reference import Dense
from meltr import Bilevel, LossTransformer
from meltr.autograd.graph import needed_later, shared_backwards
from meltr.verify.memory import peak_memory

GAMMA = 0.3
WIDTH, DEPTH = 256, 6


class Trunk(nn.Module):
    """Square layers of 256 KiB each, `examples` rows of 1 KiB, and losses of the same output."""

    def __init__(self, losses: int, examples: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(*(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(DEPTH)))
        self.inputs, self.targets = torch.randn(examples, WIDTH), torch.randn(losses, examples, WIDTH)

    def losses(self, count: int | None = None) -> list[Tensor]:
        found = self.layers(self.inputs[:count])
        return [F.mse_loss(found, target[:count]) for target in self.targets]

    @property
    def gradient(self) -> float:
        """Memory of one gradient in MiB."""
        return sum(parameter.nbytes for parameter in self.parameters()) / 2**20


def memory_of_steps(model: Trunk, *, part: int | None = None, **settings) -> tuple[float, float]:
    """Return the peak of an ordinary step and of one with an outer step, in MiB; the combiner is small.

    With `part`, the outer step sees that many examples.
    """
    m = LossTransformer(len(model.targets), width=8, heads=2, feedforward=8, scale_hidden=8)
    bilevel = Bilevel(model, m, torch.optim.SGD(m.parameters(), 0.0), gamma=GAMMA, **settings)

    def step(outer: bool) -> None:
        bilevel.backward(model.losses, outer=outer, outer_part=None if part is None else lambda: model.losses(part))
        model.zero_grad()  # at the end: what was there before must not be freed while the peak is looked for

    step(outer=False)
    for _ in range(2):  # a difference looks for its step size; both are compared with one backward pass per task
        step(outer=True)
    return tuple(peak_memory(lambda outer=outer: step(outer), torch.device("cpu")) for outer in (False, True))


@pytest.mark.parametrize("examples", [16, 1024])
def test_rows_cost_one_gradient_more_than_an_ordinary_step(examples):
    """Two losses: the task gradients and nothing else, whatever the activations take; v and u are never made."""
    model = Trunk(2, examples)
    ordinary, outer = memory_of_steps(model, estimator=estimator_of("per_task"))
    assert ordinary >= model.gradient
    assert outer <= ordinary + 1.25 * model.gradient


def test_rows_that_are_not_kept_are_there_one_at_a_time():
    """Four losses: v and one task's gradient, where an ordinary step has u."""
    model = Trunk(4, 16)
    ordinary, outer = memory_of_steps(model, estimator=estimator_of("per_task"))
    assert outer <= ordinary + 1.25 * model.gradient


@pytest.mark.parametrize("estimator", ["difference", "forward"])
def test_the_graph_of_a_part_is_gone_before_that_of_the_batch(estimator):
    model = Trunk(4, 1024)
    ordinary, outer = memory_of_steps(model, estimator=estimator_of(estimator), part=256)
    assert outer <= 1.05 * ordinary


def test_the_batch_draws_what_it_would_draw_without_a_part():
    model, m = build(Encoder)
    torch.manual_seed(7)
    expected = Bilevel(model, m).backward(model.losses).losses
    state = torch.get_rng_state()
    result, *_ = take(model, m, "per_task", outer_part=lambda: [*model.losses().values()])
    assert torch.equal(result.losses, expected)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("estimator", "more"), [("difference", 0.0), ("forward", 1.0)])
def test_a_graph_that_is_not_retained_costs_no_memory(estimator, more):
    """The activations of an ordinary step are freed while its gradient grows; so are those of v, and of u after it.

    Forward mode holds v beside the tangents of all layers, which are as large as the activations.
    """
    model = Trunk(4, 1024)
    ordinary, kept = memory_of_steps(model, estimator=estimator_of(estimator))
    _, outer = memory_of_steps(model, estimator=estimator_of(estimator), retain_graph=False)
    assert outer <= 1.05 * ordinary + more * model.gradient
    assert kept >= outer + 0.9 * model.gradient, "otherwise there is nothing to save"


def same_outer_step(build_pair, compute, estimator, tolerance, **settings) -> None:
    """Compare an outer step with and without a retained graph: gradients, buffers, generators, weights."""
    found = []
    for retain in (True, False):
        model, m = build_pair()
        inner = torch.optim.SGD(model.parameters(), 0.01)
        asked = {key: value(model) if key == "others" else value for key, value in settings.items()}
        asked |= {"compute": compute(model), "inner_optimizer": inner, "gamma": GAMMA}
        taken = take(model, m, estimator, retain_graph=retain, **asked)
        found.append((*taken, torch.get_rng_state(), model.state_dict()))
    (one, phi, w, state, values), (other, other_phi, other_w, other_state, other_values) = found
    assert torch.equal(one.losses, other.losses)
    assert torch.equal(state, other_state)
    torch.testing.assert_close(other.outer.products, one.outer.products, **tolerance)
    torch.testing.assert_close(flat(other_phi), flat(phi), **tolerance)
    assert [part is None for part in w] == [part is None for part in other_w]
    torch.testing.assert_close(flat(other_w), flat(w), **tolerance)
    for name, value in values.items():
        assert torch.equal(value, other_values[name]), name


@pytest.mark.parametrize("kind", [ConvNet, Encoder])
@pytest.mark.parametrize("estimator", [*ESTIMATORS, "auto"])
def test_only_memory_depends_on_the_graph_being_retained(estimator, kind):
    """With BatchNorm, dropout, random masks, tied, frozen and unused weights, in float32."""
    tolerance = {"rtol": max(1e-4, RELATIVE.get(estimator, 0)), "atol": 1e-6}
    same_outer_step(lambda: build(kind), lambda model: model.losses, estimator, tolerance)


@pytest.mark.parametrize("estimator", ["forward", "per_task", "double_backward"])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("count", [2, 4])
def test_so_it_is_with_every_scheme(scheme, estimator, count):
    """In float64, with the direct term; two losses are few enough for `auto` to keep the rows."""

    def pair():
        model, m = tiny()
        few = LossTransformer(2, width=8, heads=2, feedforward=8, scale_hidden=16, start="random").double()
        return model, m if count == 4 else few

    def compute(model):
        return lambda: list(model.losses().values())[:count]

    def others(model):
        return lambda number: lambda: list(model.losses(slice(number, number + 4), shift=0.2).values())[:count]

    options = scheme_of(scheme, terms=2, step=0.3, damping=3.0)
    asked = {"scheme": options, "direct_term": True, "others": others}
    same_outer_step(pair, compute, estimator, {"rtol": 1e-9, "atol": 1e-11}, **asked)


def test_each_loss_frees_what_no_later_one_needs():
    """The second and the third share a layer, the first and the last stand alone; one has no graph at all."""
    w, x = torch.randn(3, requires_grad=True), torch.randn(3)
    shared = (w * x).tanh()
    losses = [(w * 2).sum(), shared.sum(), shared.square().sum(), torch.ones(()), (w - x).square().sum()]
    assert needed_later(losses) == [False, True, False, False, False]
    assert needed_later(losses[::-1]) == [False, False, True, False, False]
    assert shared_backwards([losses[0], losses[4]]) == 1.0
    assert 1.0 < shared_backwards(losses) < 2.0


def test_kept_rows_do_for_the_inner_gradient_too():
    """One evaluation, its graph freed by the backwards themselves, and phi's and w's gradient of the dense formula."""
    model, _ = tiny()
    m = LossTransformer(2, width=8, heads=2, feedforward=8, scale_hidden=16, start="random").double()
    seen: list[list[Tensor]] = []

    def losses() -> list[Tensor]:
        return list(model.losses().values())[:2]

    def watched() -> list[Tensor]:
        seen.append(losses())
        return seen[-1]

    result, phi, w = take(model, m, "auto", compute=watched, gamma=GAMMA)
    assert len(seen) == 1
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(seen[0][0], list(model.parameters()), allow_unused=True)
    dense = Dense(model, m, losses, gamma=GAMMA)
    torch.testing.assert_close(result.outer.products, dense.j() @ dense.v(), rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(flat(phi), dense.phi_gradient(dense.v()), rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(flat(w), result.sensitivities @ dense.j(), rtol=1e-10, atol=1e-13)
