"""`bilevel.budget`: outer steps follow how much g moves, and never take more than their share of the operations."""

from __future__ import annotations

import io
import math
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bilevel_cases import estimator_of, scheme_of
from meltr import Bilevel, LinearCombiner
from meltr.bilevel.movement import MOMENTUM, NOISE, Movement
from meltr.bilevel.pace import RARELY

BUDGET = 0.5


class Regression(nn.Module):
    """l_t(W) = |X W - Y_t|^2 / 2: with W held, g is a constant."""

    def __init__(self, tasks: int = 3) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(64, 32, generator=generator)
        self.y = torch.randn(tasks, 64, 16, generator=generator)
        self.w = nn.Parameter(1 + torch.randn(32, 16, generator=generator) / 8)

    def losses(self, rows: slice = slice(None)) -> list[torch.Tensor]:
        return list((self.x[rows] @ self.w - self.y[:, rows]).square().mean((1, 2)) / 2)


class Untracked:
    """A stand-in for what assigns operations to modules: its hooks fail on ``torch.autograd.grad``."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None: ...

    def __exit__(self, *found) -> None: ...


def operations() -> FlopCounterMode:
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = Untracked()
    return counter


class Loop:
    """A training loop whose weights move by a rule of the test; counts its operations with torch's own counter."""

    def __init__(self, *, estimator: str = "per_task", move=lambda model, step: None, **settings) -> None:
        torch.manual_seed(1)
        self.model, self.move = Regression(), move
        self.m = LinearCombiner(3)
        outer = torch.optim.Adam(self.m.parameters(), 1e-3)
        self.lines: list[str] = []
        settings = {"every": 1, "budget": BUDGET, "gamma": 0.0, "log": self.lines.append, **settings}
        self.bilevel = Bilevel(self.model, self.m, outer, estimator=estimator_of(estimator), **settings)
        self.taken: list[int] = []
        self.costs: list[float] = []

    def run(self, steps: int, *, halves: bool = False, start: int = 0) -> Loop:
        for step in range(start, start + steps):
            compute = [lambda rows=rows: self.model.losses(rows) for rows in (slice(0, 32), slice(32, 64))]
            counted = step - start < 2 or self.bilevel.outer_step_due  # inner steps cost the same
            with operations() if counted else nullcontext() as counter:
                result = self.bilevel.backward(compute if halves else self.model.losses, cross=halves)
            self.costs.append(self.costs[1] if counter is None else counter.get_total_flops())
            self.taken += [step] if result.outer is not None else []
            assert counted or result.outer is None
            self.model.zero_grad()
            with torch.no_grad():
                self.move(self.model, step)
        return self

    def shares(self) -> list[float]:
        """Operations of the outer steps up to every step, by those of the inner steps."""
        inner, spent, found = self.costs[1], 0.0, []
        for step, cost in enumerate(self.costs, 1):
            spent += max(0, cost - inner)
            found.append(spent / (step * inner))
        return found


def trend(model: Regression, step: int) -> None:
    model.w += 0.002  # away from the minimum, so that g grows steadily


def noise(model: Regression, step: int) -> None:
    model.w.copy_(torch.randn(32, 16, generator=torch.Generator().manual_seed(step)))


def test_a_constant_g_is_looked_at_as_seldom_as_stated():
    loop = Loop().run(120)
    price = loop.costs[loop.taken[-1]] - loop.costs[1]
    even = price / (BUDGET * loop.costs[1])
    assert loop.taken[-1] - loop.taken[-2] == round(RARELY * even)
    assert max(loop.shares()) <= BUDGET
    assert loop.bilevel.outer_share == pytest.approx(loop.shares()[-1], rel=1e-12)


def test_a_g_that_moves_is_looked_at_as_often_as_the_budget_allows():
    loop, noisy = Loop(move=trend).run(100), Loop(move=noise).run(100)
    assert loop.shares()[-1] > 0.95 * BUDGET
    assert max(loop.shares() + noisy.shares()) <= BUDGET
    assert len(loop.taken) > 2 * len(noisy.taken)


def test_what_was_saved_is_spent_when_g_starts_to_move():
    loop = Loop(move=lambda model, step: trend(model, step) if step > 60 else None).run(140)
    price = (loop.costs[loop.taken[-1]] - loop.costs[1]) / loop.costs[1]
    spacings = [b - a for a, b in zip(loop.taken, loop.taken[1:], strict=False)]
    assert max(spacings) > 4 * price / BUDGET
    assert spacings[-5:] == [1] * 5 < [price / BUDGET] * 5  # closer than the budget allows for ever
    assert max(loop.shares()) <= BUDGET


@pytest.mark.parametrize("estimator", ["auto", "forward", "per_task", "one_sided", "difference", "double_backward"])
def test_no_estimator_costs_more_than_the_budget_at_any_step(estimator):
    loop = Loop(estimator=estimator, move=trend).run(80)
    assert len(loop.taken) > 5
    assert max(loop.shares()) <= BUDGET
    assert loop.bilevel.outer_share == pytest.approx(loop.shares()[-1], rel=1e-12)
    assert any(line.startswith("budget: an outer step costs at most") for line in loop.lines)


@pytest.mark.parametrize("scheme", ["aid-fp", "aid-cg", "itd", "primary-step", "cross"])
def test_no_scheme_costs_more_than_the_budget_at_any_step(scheme):
    rule = scheme_of("aid-fp-lite" if scheme == "cross" else scheme, step=0.01)
    loop = Loop(estimator="forward", move=trend, scheme=rule).run(80, halves=scheme == "cross")
    assert len(loop.taken) > 3
    assert max(loop.shares()) <= BUDGET


def test_what_outer_steps_may_cost_counts_where_nothing_is_a_matrix_product():
    model = nn.ParameterList([nn.Parameter(torch.ones(3))])
    m = nn.Module()
    m.scale = nn.Parameter(torch.ones(2))
    m.forward = lambda losses: (m.scale * losses).sum()
    settings = {"estimator": estimator_of("per_task"), "budget": 0.5, "log": (lines := []).append}
    bilevel = Bilevel(model, m, torch.optim.SGD(m.parameters(), 0.1), **settings)
    taken = [
        step
        for step in range(50)
        if bilevel.backward(lambda: [model[0].square().sum(), model[0].sum()]).outer is not None
    ]
    # A forward pass is 1, a backward pass 2: v, one per task and two forward passes are 8, an inner step 3.
    assert taken[0] == math.ceil(8 / (0.5 * 3))
    assert bilevel.outer_share == pytest.approx(len(taken) * 8 / 150)
    assert any("operations cannot be counted" in line for line in lines)


def test_never_within_a_window_of_micro_batches():
    loop, windows = Loop(), []
    for call in range(150):
        result = loop.bilevel.backward(loop.model.losses, accumulate=3)
        windows += [call % 3] if result.outer is not None else []
    assert len(windows) > 3
    assert set(windows) == {0}
    assert loop.bilevel.outer_share <= BUDGET


@pytest.fixture(scope="module")
def whole() -> Loop:
    return Loop(estimator="one_sided", move=trend).run(80)


@pytest.mark.parametrize("cut", [1, 7, 30])
def test_killed_and_resumed_it_takes_the_same_outer_steps(whole, cut):
    killed, resumed = (Loop(estimator="one_sided", move=trend) for _ in range(2))
    file = io.BytesIO()
    torch.save({"model": (at := killed.run(cut)).model.state_dict(), "bilevel": at.bilevel.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed.model.load_state_dict(state["model"])
    resumed.bilevel.load_state_dict(state["bilevel"])
    resumed.run(80 - cut, start=cut)
    assert [*killed.taken, *resumed.taken] == whole.taken
    assert len(whole.taken) > 5
    assert resumed.bilevel.outer_share == whole.bilevel.outer_share
    pairs = zip(whole.m.state_dict().values(), resumed.m.state_dict().values(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


def test_a_budget_may_begin_in_the_middle_of_a_run():
    fixed, loop = Loop(budget=None), Loop(move=trend)
    assert fixed.run(20).bilevel.outer_share is None
    assert fixed.taken == list(range(1, 20))
    loop.bilevel.load_state_dict(fixed.bilevel.state_dict())
    loop.run(60, start=20)
    assert loop.taken[0] > 21
    assert len(loop.taken) > 5
    assert loop.bilevel.outer_share <= BUDGET


@pytest.mark.parametrize("budget", [0, -0.1, 1.5, 5, math.nan])
def test_wrong_values_are_refused(budget):
    with pytest.raises(ValueError, match=r"budget must be above 0 and at most 1 \(0.05: 5 % of the operations\), got"):
        Loop(budget=budget)


def test_the_loop_says_what_it_may_cost():
    assert "every=1, budget=0.5, gamma" in repr(Loop().bilevel)
    assert "budget" not in repr(Loop(budget=None).bilevel)


# the signal


def filtered(values: torch.Tensor) -> tuple[Movement, float]:
    """The signal after g of shape (steps, losses), and the averaged error's square over that of the errors."""
    movement = Movement()
    for each in values:
        movement.saw(each)
    state = movement.state_dict()
    error, square = torch.tensor(state["error"]), torch.tensor(state["square"])
    return movement, float(error.square().mean() / square.mean())


def test_noise_and_random_walks_have_the_tracking_signals_of_their_closed_forms():
    drawn = torch.randn(80, 4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    level = torch.full((4000,), 5.0, dtype=torch.float64)
    r = MOMENTUM
    noisy, ratio = filtered(level + drawn)
    assert ratio == pytest.approx((1 - r) / (1 + r) ** 2, rel=0.08)
    assert pytest.approx((1 - r) / (1 + r) ** 2) == NOISE
    walk, ratio = filtered(drawn.cumsum(0))
    assert ratio == pytest.approx((1 + r**2) / (1 + r) ** 2, rel=0.08)
    assert noisy.signal() < 0.1 < 0.3 < walk.signal() < 0.5


def test_a_trend_is_all_signal_and_a_constant_is_none():
    steps = torch.arange(200.0, dtype=torch.float64)[:, None]
    assert filtered(steps * torch.tensor([1.0, -3.0]))[0].signal() == pytest.approx(1.0, abs=1e-6)
    assert filtered(torch.ones_like(steps))[0].signal() == 0.0
    assert filtered(torch.cat([steps, torch.ones_like(steps)], 1))[0].signal() == pytest.approx(0.5, abs=1e-6)
    assert filtered(steps[:1])[0].signal() == 1.0


def test_a_g_that_is_not_finite_changes_nothing():
    values = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
    hole = torch.cat([values[:10], torch.tensor([[math.nan, 1.0]]), values[10:]])
    assert filtered(hole)[0].signal() == filtered(values)[0].signal()
