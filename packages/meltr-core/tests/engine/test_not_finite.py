"""Gradients and weights that are not finite end a run before they reach a checkpoint."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import meltr
from changed_toy import changed_toy, run_toy
from command_line import call
from meltr.engine.finite import FiniteGuard, StateGuard
from meltr.errors import NonFiniteError, NonFiniteLossError
from places import TOY

SETTINGS = {"combiner": "sum", "train.epochs": 2, "train.checkpoint_every": 3}
NORM = '"norm": lambda: hidden.square().mean(),'


def broken_at(folder, call_number: int, value: str = "inf"):
    """A toy whose third loss is finite always, and its gradient at one call is not."""
    return changed_toy(
        folder,
        (NORM, '"norm": lambda: Broken.apply(hidden).square().mean(),'),
        (
            "class Toy:\n",
            f"""class Broken(torch.autograd.Function):
    calls = 0

    @staticmethod
    def forward(ctx, hidden):
        Broken.calls += 1
        ctx.broken = Broken.calls == {call_number}
        return hidden.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("{value}") if ctx.broken else gradient


class Toy:
""",
        ),
    )


@pytest.mark.parametrize("value", ["inf", "nan"])
@pytest.mark.parametrize("at", [6, 16])  # before a checkpoint, and in the last step of the run
@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_gradient_that_is_not_finite_ends_the_run_before_the_weights_move(tmp_path, value, at, clip):
    plugin = broken_at(tmp_path, at, value)
    settings = {**SETTINGS, "train.clip_norm": clip}
    with pytest.raises(NonFiniteError, match=rf"The gradient of body\.\d.* is not finite at step {at - 1}") as caught:
        run_toy(plugin, tmp_path / "run", **settings)
    assert not isinstance(caught.value, NonFiniteLossError)
    last = {6: "step-000003", 16: "step-000015"}[at]
    assert f"checkpoints/{last}." in str(caught.value)
    assert not (tmp_path / "run" / "results.json").exists()
    state = torch.load(tmp_path / "run" / "checkpoints" / "last" / "training.pt", weights_only=True)
    assert state["step"] == int(last[-6:])
    resumed = run_toy(TOY, tmp_path / "run", resume=True, **settings)
    assert resumed["test"] == run_toy(TOY, tmp_path / "whole", **settings)["test"]


def test_the_command_ends_with_an_error(tmp_path):
    plugin = broken_at(tmp_path, 16)
    choice = ("--plugin", plugin, "--backbone", "toy", "--task", "classification", "--dataset", "rings")
    settings = ("--combiner", "sum", "--epochs", "2", "--batch-size", "32", "--device", "cpu", "--quiet")
    done = call("run", *choice, *settings, "--output-dir", tmp_path, "--name", "run")
    assert done.exit_code == 1
    assert "error: The gradient of body.0.weight" in done.stderr
    assert "Traceback" not in done.output


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    """An observer spoils a weight between a step and its checkpoint; no loss and no gradient tells."""

    class Spoil:
        @meltr.hookimpl
        def on_evaluation(self, split, step):
            if step == 16:
                with torch.no_grad():
                    next(p for p in live if p.shape == (32,))[3] = float("nan")

    live: list[nn.Parameter] = []
    plugin = changed_toy(tmp_path, ("        return Net()\n", "        return kept(Net())\n"), ("class Toy:\n", KEPT))
    import sys

    def load():
        live.extend(next(m for n, m in sys.modules.items() if "changed_" in n and hasattr(m, "KEPT")).KEPT)

    class Find:
        @meltr.hookimpl
        def on_run_start(self):
            load()

    with pytest.raises(NonFiniteError, match=r"backbone tensor 'body\.0\.bias' is not finite after step 16") as caught:
        run_toy(plugin, tmp_path / "run", observers=[Find(), Spoil()], **SETTINGS)
    assert "step-000015" in str(caught.value)
    names = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert names == {"step-000008", "step-000015", "best", "last"}


KEPT = """KEPT = []


def kept(model):
    KEPT.extend(model.parameters())
    return model


class Toy:
"""


def guard_on(kind: str, parameters):
    return FiniteGuard(["a", "b"], torch.device(kind), parameters)


def test_on_an_accelerator_the_answer_comes_one_step_later_and_before_a_checkpoint():
    weight = nn.Parameter(torch.ones(2))
    guard = guard_on("cuda", {"head.weight": weight})
    fine = torch.tensor([1.0, 2.0])
    weight.grad = torch.tensor([1.0, float("inf")])
    guard.check(4, fine)
    guard.check_gradients(4)
    weight.grad = torch.zeros(2)  # the optimiser has cleared it meanwhile
    with pytest.raises(NonFiniteError, match=r"The gradient of head\.weight is not finite at step 4"):
        guard.check(5, fine)
    guard.check(6, torch.tensor([1.0, float("nan")]))
    guard.check_gradients(6)
    with pytest.raises(NonFiniteLossError, match="'b' = nan at step 6"):
        guard.flush()
    guard.flush()  # nothing is pending any more


def test_a_large_finite_gradient_is_not_called_infinite():
    """Its square overflows in float32, and so does its 2-norm."""
    weight = nn.Parameter(torch.ones(3))
    weight.grad = torch.tensor([3e38, -3e38, 0.0])
    guard = guard_on("cpu", {"w": weight, "empty": nn.Parameter(torch.ones(0)), "without": nn.Parameter(torch.ones(1))})
    guard.check_gradients(0)
    double = nn.Parameter(torch.ones(2, dtype=torch.float64))
    double.grad = torch.full((2,), 1e300, dtype=torch.float64)
    guard_on("cpu", {"w": weight, "d": double}).check_gradients(0)
    double.grad[0] = float("nan")
    with pytest.raises(NonFiniteError, match="of d is not"):
        guard_on("cpu", {"w": weight, "d": double}).check_gradients(0)


def test_a_sparse_gradient_is_checked():
    table = nn.Embedding(5, 2, sparse=True)
    table(torch.tensor([1, 1, 3])).sum().backward()
    guard_on("cpu", {"table": table.weight}).check_gradients(0)
    table.weight.grad = table.weight.grad * float("inf")
    with pytest.raises(NonFiniteError, match="of table is not"):
        guard_on("cpu", {"table": table.weight}).check_gradients(0)


def test_what_is_infinite_from_the_start_is_allowed():
    model = nn.Linear(2, 2)
    model.register_buffer("mask", torch.full((2,), -float("inf")))
    optimizer = torch.optim.Adam(model.parameters())
    guard = StateGuard(model, nn.Identity(), optimizer)
    guard.check(1)
    model.weight.grad = torch.ones(2, 2)
    optimizer.step()
    optimizer.state[model.weight]["exp_avg"][0, 0] = float("inf")
    with pytest.raises(NonFiniteError, match="optimiser state 'exp_avg' of 'weight' is not finite after step 2"):
        guard.check(2)
