"""Recorded losses, with a stand-in for CUDA graphs that runs the function again: same rules, any machine.

The stand-in overwrites the same static values as a graph does. What graphs launch is for `test_gpu.py`.
"""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn

from bilevel_cases import estimator_of
from meltr import Bilevel, ForwardMode, LossTransformer, PrimaryStep, Setup
from meltr.autograd.graphed import GraphedLosses
from meltr.autograd.random_state import RandomState

NAMES = ("a", "b", "c", "d")


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4))
        self.evaluations = 0

    def losses(self, batch):
        self.evaluations += 1
        out = self.body(batch["x"])
        error = (out - batch["y"]).square().mean(0)
        return {name: error[place] for place, name in enumerate(NAMES)}


def stand_in(function: Callable[[], None], together: list[object]) -> Callable[[], None]:
    enabled = torch.is_grad_enabled()

    def again() -> None:
        with torch.set_grad_enabled(enabled):
            function()

    again()
    return again


def batches(number: int, size: int = 6):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return [{"x": draw(size, 5), "y": draw(size, 4)} for _ in range(number)]


def graphed(model, lines=None) -> GraphedLosses:
    return GraphedLosses(model, stand_in, RandomState, (lines if lines is not None else []).append)


def run(recorded: bool, *, steps: int = 12, accumulate: int = 1, **settings):
    torch.manual_seed(0)
    model, m = Model().double(), LossTransformer(NAMES, width=8, heads=2, start="random").double()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    setup = Setup(recorded=recorded)
    bilevel = Bilevel(model, m, torch.optim.SGD(m.parameters(), 1e-2), setup=setup, **settings)
    graphs, found = graphed(model), []
    for number, batch in enumerate(batches(steps)):
        torch.manual_seed(number)
        optimizer.zero_grad()
        halves = [{k: v.chunk(accumulate)[i] for k, v in batch.items()} for i in range(accumulate)]
        functions = [
            graphs.of(model.losses, each, NAMES) if recorded else (lambda e=each: model.losses(e)) for each in halves
        ]
        result = bilevel.backward(functions)
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        optimizer.step()
        late = bilevel.after_step()
        outer = result.outer or late
        found.append((result.losses, result.sensitivities, gradient, None if outer is None else outer.products))
    assert graphs.refused == ""
    assert (graphs.count > 0) == recorded
    return found, list(model.parameters()), list(m.parameters())


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    "settings",
    [
        {"estimator": "per_task"}, {"estimator": "forward"}, {"estimator": "one_sided"}, {"estimator": "difference"},
        {"estimator": "per_task", "retain_graph": False}, {"scheme": PrimaryStep()},
    ],
    ids=["per_task", "forward", "one_sided", "difference", "recompute", "primary-step"],
)  # fmt: skip
def test_a_loop_with_recorded_losses_is_the_loop_with_plain_ones(settings, accumulate):
    def made():
        return {**settings, **({"estimator": estimator_of(settings["estimator"])} if "estimator" in settings else {})}

    plain, recorded = run(False, accumulate=accumulate, **made()), run(True, accumulate=accumulate, **made())
    for one, other in zip(plain[0], recorded[0], strict=True):
        for expected, value in zip(one, other, strict=True):
            assert (expected is None) == (value is None)
            if expected is not None:
                torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
    for expected, value in zip(plain[1] + plain[2], recorded[1] + recorded[2], strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_forward_mode_is_recorded_too(accumulate):
    """A replay reads the tangents of its own outer step, not those of the step that was recorded."""
    found = []
    for recorded in (False, True):
        torch.manual_seed(0)
        model, m = Model().double(), LossTransformer(NAMES, width=8, heads=2, start="random").double()
        bilevel = Bilevel(
            model,
            m,
            torch.optim.SGD(m.parameters(), 1e-2),
            every=1,
            estimator=ForwardMode(),
            setup=Setup(recorded=recorded),
        )
        graphs, products = graphed(model), []
        for batch in batches(16):
            halves = [{k: v.chunk(accumulate)[i] for k, v in batch.items()} for i in range(accumulate)]
            model.zero_grad()
            result = bilevel.backward([graphs.of(model.losses, each, NAMES) for each in halves], outer=True)
            products.append(result.outer.products)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.05 * parameter.grad
        assert graphs.refused == ""
        found.append((graphs.count, products))
    assert found[1][0] == found[0][0] + 1
    for expected, value in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)


class Apart(nn.Module):
    """One body per loss."""

    def __init__(self) -> None:
        super().__init__()
        self.bodies = nn.ModuleDict(
            {name: nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1)) for name in NAMES}
        )

    def losses(self, batch):
        return {name: body(batch["x"]).square().mean() for name, body in self.bodies.items()}


def test_losses_that_share_little_have_a_backward_pass_each():
    model, ran = Apart().double(), []

    def counting(function, together):
        replay = stand_in(function, together)
        number = len(ran)
        ran.append(0)

        def again():
            ran[number] += 1
            replay()

        return again

    graphs, batch = GraphedLosses(model, counting, RandomState), batches(1)[0]
    for _ in range(3):
        losses = graphs.of(model.losses, batch, NAMES)()
    assert len(ran) == 1 + 1 + len(NAMES)  # the evaluation, all losses, each loss
    leaves = list(model.parameters())
    found = torch.autograd.grad(losses["c"], leaves, retain_graph=True, allow_unused=True)
    plain = torch.autograd.grad(model.losses(batch)["c"], leaves, allow_unused=True)
    for one, other in zip(found, plain, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other)
    assert ran[1:] == [0, 0, 0, 1, 0]
    (0.5 * losses["a"] + 2.0 * losses["d"]).backward()
    expected = model.losses(batch)
    whole = torch.autograd.grad(0.5 * expected["a"] + 2.0 * expected["d"], leaves, allow_unused=True)
    for leaf, other in zip(leaves, whole, strict=True):
        torch.testing.assert_close(leaf.grad, torch.zeros_like(leaf) if other is None else other)
    assert ran[1:] == [1, 0, 0, 1, 0]


def test_gradients_are_copies_that_a_later_backward_pass_leaves_alone():
    model = Model().double().eval()
    graphs, batch = graphed(model), batches(1)[0]
    compute = graphs.of(model.losses, batch, NAMES)
    for _ in range(3):
        losses = compute()
    assert graphs.count == 1
    leaves = list(model.parameters())
    first = torch.autograd.grad(losses["a"], leaves, retain_graph=True)
    kept = [part.clone() for part in first]
    torch.autograd.grad(losses["b"], leaves, retain_graph=True)
    assert all(torch.equal(one, other) for one, other in zip(first, kept, strict=True))
    expected = torch.autograd.grad(model.losses(batch)["a"], leaves)
    for one, other in zip(first, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_other_shapes_losses_and_frozen_weights_are_recorded_by_themselves():
    model = Model().double().eval()
    graphs = graphed(model)
    for size in (6, 4):
        for batch in batches(3, size):
            graphs.of(model.losses, batch, NAMES)()
    assert graphs.count == 2
    model.body[0].weight.requires_grad_(False)
    for batch in batches(3):
        losses = graphs.of(model.losses, batch, NAMES)()
    assert graphs.count == 3
    losses["a"].backward()
    assert model.body[0].weight.grad is None
    with torch.no_grad():
        for batch in batches(3):
            assert not graphs.of(model.losses, batch, NAMES)()["a"].requires_grad
    assert graphs.count == 4


@pytest.mark.parametrize("kind", ["python", "torch"])
def test_losses_that_draw_on_the_host_are_not_recorded(kind):
    model, lines = Model().double().eval(), []
    graphs, batch = graphed(model, lines), batches(1)[0]

    def noisy(each):
        factor = random.random() if kind == "python" else float(torch.rand(()))
        return {name: loss * factor for name, loss in model.losses(each).items()}

    values = {float(graphs.of(noisy, batch, NAMES)()["a"].detach()) for _ in range(5)}
    assert len(values) == 5
    assert graphs.count == 0
    assert "random numbers on the host" in graphs.refused
    assert lines == [f"cuda_graphs: not used, {graphs.refused}"]


def test_losses_that_change_from_call_to_call_are_not_recorded():
    model = Model().double().eval()
    graphs, batch, calls = graphed(model), batches(1)[0], []

    def counted(each):
        calls.append(1)
        return {name: loss * len(calls) for name, loss in model.losses(each).items()}

    for _ in range(6):
        graphs.of(counted, batch, NAMES)()
    assert "other losses" in graphs.refused


def test_a_second_graph_of_the_same_kind_is_an_error_and_not_a_wrong_gradient():
    model = Model().double().eval()
    graphs = graphed(model)
    one, two = batches(2)
    for _ in range(2):
        graphs.of(model.losses, one, NAMES)()
    first = graphs.of(model.losses, one, NAMES)()
    graphs.of(model.losses, two, NAMES)()
    with pytest.raises(RuntimeError, match="cuda_graphs=false"):
        first["a"].backward()


def test_double_backward_is_an_error():
    model = Model().double().eval()
    graphs, batch = graphed(model), batches(1)[0]
    for _ in range(3):
        losses = graphs.of(model.losses, batch, NAMES)()
    (gradient,) = torch.autograd.grad(losses["a"], model.body[0].weight, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradient.sum().backward()


def test_a_refused_recording_draws_the_numbers_of_a_plain_evaluation():
    """An outer step replays the numbers of the first evaluation: another draw there would be another function."""
    generator = torch.Generator()
    model, batch = Model().double(), batches(1)[0]

    def drawing(each):
        noise = torch.rand((), generator=generator, dtype=torch.float64)
        return {name: loss * noise for name, loss in model.losses(each).items()}

    def refusing(function, together):
        function()
        raise RuntimeError("no capture")

    graphs = GraphedLosses(model, refusing, lambda: RandomState((), [generator]))
    found = []
    for number in range(4):
        generator.manual_seed(number)
        losses = graphs.of(drawing, batch, NAMES)()
        generator.manual_seed(number)
        assert torch.equal(losses["a"], drawing(batch)["a"])
        found.append(graphs.refused)
    assert found == ["", "", "no capture", "no capture"]


def test_weights_that_were_moved_in_memory_are_recorded_anew():
    """A CUDA graph reads the weights where they were; ``parameter.data = other`` gives them another place."""
    model = Model().double().eval()
    graphs, batch = graphed(model), batches(1)[0]
    for number in range(8):
        if number == 4:
            model.body[0].weight.data = 2 * model.body[0].weight.data
        assert torch.equal(graphs.of(model.losses, batch, NAMES)()["a"], model.losses(batch)["a"])
    assert graphs.count == 2


def test_recordings_that_are_given_up_hold_no_memory_and_are_made_anew():
    model = Model().double()
    m = LossTransformer(NAMES, width=8, heads=2).double()
    bilevel = Bilevel(model, m, torch.optim.SGD(m.parameters(), 1e-2), setup=Setup(recorded=True))
    graphs = graphed(model)
    for batch in batches(8):
        result = bilevel.backward(graphs.of(model.losses, batch, NAMES))
        bilevel.after_step()
    held = [weakref.ref(each._outputs) for each in graphs._recordings.values()]
    assert held
    graphs.clear()
    gc.collect()
    assert [each() for each in held] == [None] * len(held)
    assert graphs.count == 0
    batch = batches(1)[0]
    losses = graphs.of(model.losses, batch, NAMES)()
    assert graphs.count == 1
    assert torch.equal(losses["a"], model.losses(batch)["a"])
    assert result.losses is not None  # a result that is kept holds no recording
