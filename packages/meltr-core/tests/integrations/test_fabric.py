"""FabricBilevel: the gradients of the plain loop, precision and scaling of Fabric; saved and loaded exactly."""

from __future__ import annotations

import pytest
import torch

import integration_cases as cases
from meltr import CentralDifference, Setup, UserError
from ranks_helper import run_ranks

fabric = pytest.importorskip("lightning.fabric")

from lightning.fabric.plugins import MixedPrecision  # noqa: E402

from meltr.integrations.fabric import FabricBilevel  # noqa: E402


class Loop:
    """A user's loop with Fabric, whose last window of seven batches ends early."""

    def __init__(self, number=1, *, count=3, dropout=0.0, wrap=lambda model: model, **settings) -> None:
        self.fabric = fabric.Fabric(accelerator="cpu", devices=1, **settings)
        model, self.number, self.count = wrap(cases.net(dropout)), number, count
        optimizer = cases.inner(model)
        self.gradients = cases.Gradients(optimizer)
        self.model, self.optimizer = self.fabric.setup(model, optimizer)
        combiner = cases.combiner(count)
        self.bilevel = FabricBilevel(self.fabric, self.model, combiner, cases.outer(combiner), every=2)

    def epoch(self):
        pieces = cases.batches(7)
        for index, (x, y) in enumerate(pieces):
            torch.manual_seed(index)
            last = (index + 1) % self.number == 0 or index == len(pieces) - 1
            with self.fabric.no_backward_sync(self.model, enabled=not last):
                compute = lambda x=x, y=y: cases.losses(self.model, x, y, self.count)  # noqa: E731
                self.bilevel.backward(compute, accumulate=self.number, last=last)
            if last:
                self.optimizer.step()
                self.optimizer.zero_grad()
        return self

    def state(self):
        return {"model": self.model, "optimizer": self.optimizer, "bilevel": self.bilevel}


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("count", [2, 3])
def test_gradients_are_those_of_the_plain_loop(number, count):
    loop = Loop(number, count=count).epoch().epoch()
    plain = cases.Plain(2 * cases.windows(7, number), number, count=count)
    loop.gradients.equal(plain.gradients)
    cases.agree((loop.model, loop.bilevel.combiner), plain)


def test_bf16_is_the_autocast_of_the_plain_loop():
    loop = Loop(precision="bf16-mixed").epoch()
    plain = cases.Plain(cases.windows(7, 1), 1, setup=Setup(autocast=torch.bfloat16))
    loop.gradients.equal(plain.gradients)


def test_gradients_are_scaled_as_fabric_scales_them():
    """A gradient scaler, as for fp16 on a GPU; Fabric unscales at the step."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    plugin.forward_context = lambda: torch.autocast("cpu", enabled=False)
    plugin.convert_input = lambda data: data
    plugin.precision = "32-true"
    loop = Loop(plugins=[plugin])
    ((x, y),) = cases.batches(1)
    loop.bilevel.backward(lambda: cases.losses(loop.model, x, y))
    plain = cases.Plain(cases.windows(7, 1), 1)
    for parameter, expected in zip(loop.model.parameters(), plain.gradients.steps[0], strict=True):
        torch.testing.assert_close(parameter.grad, 2.0**10 * expected, rtol=1e-6, atol=1e-4)
    loop.optimizer.zero_grad()
    fresh = Loop(plugins=[plugin]).epoch()
    cases.agree((fresh.model, fresh.bilevel.combiner), plain)


def test_a_state_that_was_saved_and_loaded_continues_with_the_same_bits(tmp_path):
    whole = Loop(3, dropout=0.2).epoch()
    whole.fabric.save(tmp_path / "last.ckpt", whole.state())
    whole.epoch()
    resumed = Loop(3, dropout=0.2)
    resumed.fabric.load(tmp_path / "last.ckpt", resumed.state())
    assert resumed.bilevel.bilevel.steps == 3
    resumed.epoch()
    assert cases.same_bits(resumed.model, whole.model)
    assert cases.same_bits(resumed.bilevel.combiner, whole.bilevel.combiner)


def test_fabric_still_asks_for_its_own_backward_elsewhere():
    """Only a call of the integration is exempt."""
    loop = Loop(precision="bf16-mixed")
    ((x, y),) = cases.batches(1)
    loop.bilevel.backward(lambda: cases.losses(loop.model, x, y))
    with pytest.raises(RuntimeError, match=r"fabric.backward\(loss\)"):
        loop.model(x).sum().backward()


def test_bad_use_is_an_error():
    mine, combiner = fabric.Fabric(accelerator="cpu", devices=1), cases.combiner()
    with pytest.raises(UserError, match=r"\(Net\) was not set up by Fabric.\n.*fabric.setup"):
        FabricBilevel(mine, cases.net(), combiner)
    loop = Loop(precision="bf16-mixed")
    with pytest.raises(UserError, match="CentralDifference needs float32 forward passes"):
        FabricBilevel(loop.fabric, loop.model, combiner, cases.outer(combiner), estimator=CentralDifference())
    strategy = fabric.strategies.DataParallelStrategy(parallel_devices=[torch.device("cpu")])
    with pytest.raises(UserError, match=r'does not support DataParallelStrategy of Lightning.\n.*strategy="ddp"'):
        FabricBilevel(type("F", (), {"strategy": strategy})(), loop.model, combiner)


def distributed(_, number):
    """Return weights and phi of this process, which holds a half of every batch."""
    mine = fabric.Fabric(accelerator="cpu", devices=2, strategy="ddp")
    mine.launch()
    number, combiner, model = int(number), cases.combiner(), cases.without_batch_norm()
    model, optimizer = mine.setup(model, cases.inner(model))
    bilevel = FabricBilevel(mine, model, combiner, cases.outer_sgd(combiner), every=2)
    part = slice(3 * mine.global_rank, 3 * mine.global_rank + 3)
    for index, (x, y) in enumerate(cases.batches(6)):
        last = (index + 1) % number == 0
        with mine.no_backward_sync(model, enabled=not last):
            bilevel.backward(lambda x=x, y=y: cases.losses(model, x[part], y[part]), accumulate=number)
        if last:
            optimizer.step()
            optimizer.zero_grad()
    return cases.together(model.module, combiner)


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2])
def test_two_processes_train_as_one_does(number):
    results = [ended.result for ended in run_ranks(distributed, words=[number], join=False)]
    cases.agree_with_one_process(results, cases.alone(number))
