"""Accelerate: the gradients of the plain loop, with accumulation and mixed precision; saved and resumed exactly."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import integration_cases as cases
from meltr import AIDFP, OneSidedDifference, Setup, UserError
from meltr.combiners.famo import Famo
from ranks_helper import run_ranks

accelerate = pytest.importorskip("accelerate")

from accelerate.state import AcceleratorState, GradientState  # noqa: E402

from meltr.integrations.accelerate import AcceleratedBilevel  # noqa: E402


def accelerator(**settings):
    """Return an accelerator of its own; all of a process share one state."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return accelerate.Accelerator(cpu=True, **settings)


class Loop:
    """A user's loop with Accelerate over epochs of a loader."""

    def __init__(self, number: int, *, count=3, scaler=None, dropout=0.0, make=None, wrap=lambda model: model, **how):
        self.accelerator = accelerator(gradient_accumulation_steps=number, **how)
        if scaler is not None:
            self.accelerator.scaler = scaler
        model = wrap(cases.net(dropout))
        optimizer = cases.inner(model)
        self.gradients = cases.Gradients(optimizer)
        loader = torch.utils.data.DataLoader(cases.dataset(7), batch_size=6)
        self.model, self.optimizer, self.loader = self.accelerator.prepare(model, optimizer, loader)
        combiner = (make or cases.combiner)(count)
        self.bilevel = AcceleratedBilevel(self.accelerator, self.model, combiner, cases.outer(combiner), every=2)
        self.count, self.results = count, []

    def epoch(self):
        for x, y in self.loader:
            with self.accelerator.accumulate(self.model):
                step = self.bilevel.backward(lambda x=x, y=y: cases.losses(self.model, x, y, self.count))
                self.results.append(step)
                self.optimizer.step()
                self.optimizer.zero_grad()
        return self


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("count", [2, 3])
def test_gradients_are_those_of_the_plain_loop(number, count):
    """Seven batches: with three per step, the third step of an epoch has one. Two losses keep their rows."""
    loop = Loop(number, count=count).epoch().epoch()
    plain = cases.Plain(2 * cases.windows(7, number), number, count=count)
    loop.gradients.equal(plain.gradients)
    cases.agree((loop.model, loop.bilevel.combiner), plain)
    assert loop.bilevel.bilevel.outer_steps == plain.bilevel.outer_steps >= 2
    taken = [step.outer is not None for step in loop.results]
    assert taken == [step.outer is not None for step in plain.results]


def test_bf16_is_the_autocast_of_the_plain_loop():
    loop = Loop(1, mixed_precision="bf16").epoch()
    plain = cases.Plain(cases.windows(7, 1), 1, setup=Setup(autocast=torch.bfloat16))
    loop.gradients.equal(plain.gradients)
    full = cases.Plain(cases.windows(7, 1), 1)
    gap = max(float((a - b).abs().max()) for a, b in zip(loop.gradients.steps[0], full.gradients.steps[0], strict=True))
    assert gap > 1e-5  # bf16 it was


@pytest.mark.parametrize("number", [1, 3])
def test_gradients_are_scaled_as_accelerate_scales_them(number):
    """With a gradient scaler, as for fp16 on a GPU; its factor is a power of two, so that nothing is rounded."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    seen = []
    loop = Loop(number, scaler=scaler)
    step = loop.bilevel.bilevel.backward

    def spy(*arguments, **how):
        before = [0 if p.grad is None else p.grad.clone() for p in loop.model.parameters()]
        result = step(*arguments, **how)
        now = [p.grad for p in loop.model.parameters()]
        seen.append([b - a for a, b in zip(before, now, strict=True)])
        return result

    loop.bilevel.bilevel.backward = spy
    loop.optimizer = accelerate.optimizer.AcceleratedOptimizer(loop.optimizer.optimizer, scaler=scaler)
    loop.epoch()
    plain = cases.Plain(cases.windows(7, number), number)
    loop.gradients.equal(plain.gradients)
    cases.agree((loop.model, loop.bilevel.combiner), plain)
    for index, expected in enumerate(plain.gradients.steps[0]):
        whole = sum(parts[index] for parts in seen[:number])
        torch.testing.assert_close(whole, 2.0**10 * expected, rtol=1e-5, atol=1e-3)


def test_a_state_that_was_saved_and_loaded_continues_with_the_same_bits(tmp_path):
    """With dropout, and in the middle of training, after a window that ended early."""
    whole = Loop(3, dropout=0.2).epoch()
    whole.accelerator.save_state(tmp_path)
    whole.epoch()
    resumed = Loop(3, dropout=0.2)
    resumed.accelerator.load_state(tmp_path)
    assert resumed.bilevel.bilevel.steps == 3
    resumed.epoch()
    assert cases.same_bits(resumed.model, whole.model)
    assert cases.same_bits(resumed.bilevel.combiner, whole.bilevel.combiner)
    assert resumed.bilevel.bilevel.outer_steps == whole.bilevel.bilevel.outer_steps


def test_a_rule_that_needs_the_moved_weights_sees_them_after_the_last_step(monkeypatch):
    """FAMO: once per step of the optimiser, also for a window that the end of the loader ends."""
    calls = []
    rule = Famo.own_gradients
    monkeypatch.setattr(Famo, "own_gradients", lambda self, step: calls.append(step) or rule(self, step))
    loop = Loop(3, make=lambda count: Famo(cases.NAMES)).epoch()
    loop.bilevel.state_dict()
    assert len(calls) == 3


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
def test_a_compiled_model(backend):
    loop = Loop(1, wrap=lambda model: torch.compile(model, backend=backend)).epoch()
    plain = cases.Plain(cases.windows(7, 1), 1)
    loop.gradients.equal(plain.gradients)


def test_bad_use_is_an_error():
    model, combiner = cases.net(), cases.combiner()
    mine = accelerator()
    with pytest.raises(UserError, match=r"\(Net\) was not prepared.*\n.*accelerator.prepare"):
        AcceleratedBilevel(mine, model, combiner)
    prepared = mine.prepare(model)
    with pytest.raises(UserError, match=r"Bilevel has no setting 'evry'.\nDid you mean 'every'\?"):
        AcceleratedBilevel(mine, prepared, combiner, evry=3)
    bilevel = AcceleratedBilevel(mine, prepared, combiner)
    ((x, y),) = cases.batches(1)
    with pytest.raises(UserError, match="Expected a function that returns the losses"):
        bilevel.backward(cases.losses(prepared, x, y))
    with pytest.raises(UserError, match=r"\['label', 'wrong'\].*\['label', 'size', 'shift'\]"):
        bilevel.backward(lambda: dict.fromkeys(("label", "wrong"), prepared(x).sum()))


def test_what_mixed_precision_does_not_allow_is_an_error():
    mine, combiner = accelerator(mixed_precision="bf16"), cases.combiner()
    model = mine.prepare(cases.net())
    with pytest.raises(UserError, match=r"OneSidedDifference needs float32.*\n.*PerTask\(\)"):
        AcceleratedBilevel(mine, model, combiner, cases.outer(combiner), estimator=OneSidedDifference())
    with pytest.raises(UserError, match=r"AIDFP\(hessian='difference'\) needs float32"):
        AcceleratedBilevel(mine, model, combiner, cases.outer(combiner), scheme=AIDFP())


def test_data_parallel_is_an_error():
    mine = accelerator()
    model = nn.DataParallel(cases.net())
    model._is_accelerate_prepared = True
    with pytest.raises(UserError, match=r"DataParallel .*\n.*torchrun"):
        AcceleratedBilevel(mine, model, cases.combiner())


def test_a_prepared_outer_optimiser_steps_at_the_first_micro_batch():
    """Accelerate's wrapper would skip the step until the window ends."""
    mine = accelerator(gradient_accumulation_steps=2)
    combiner = cases.combiner()
    model, optimizer = mine.prepare(cases.net(), cases.outer(combiner))
    bilevel = AcceleratedBilevel(mine, model, combiner, optimizer, every=1)
    before = cases.copied(combiner)
    for x, y in cases.batches(3):
        with mine.accumulate(model):
            bilevel.backward(lambda x=x, y=y: cases.losses(model, x, y))
    assert any(not torch.equal(before[name], value) for name, value in combiner.state_dict().items())


def distributed(_, words):
    """Return weights and phi of this process, which holds a half of every batch; the model is perhaps compiled."""
    number, compiled, count = int(words[0]), words[1] == "c", int(words[2])
    mine = accelerator(gradient_accumulation_steps=number)
    combiner, model = cases.combiner(count), cases.without_batch_norm()
    if mine.process_index:
        torch.nn.init.zeros_(combiner.fc1.weight)  # phi would drift apart
    model, optimizer = mine.prepare(model, cases.inner(model))
    if compiled:
        model = torch.compile(model, backend="eager")
    bilevel = AcceleratedBilevel(mine, model, combiner, cases.outer_sgd(combiner), every=2)
    for x, y in cases.batches(6):
        part = slice(3 * mine.process_index, 3 * mine.process_index + 3)
        with mine.accumulate(model):
            bilevel.backward(lambda x=x, y=y, part=part: cases.losses(model, x[part], y[part], count))
            optimizer.step()
            optimizer.zero_grad()
    return cases.together(mine.unwrap_model(model, keep_torch_compile=False), combiner)


@pytest.mark.slow
@pytest.mark.parametrize("words", ["1p3", "2p3", "1c3", "2p2"])
def test_two_processes_train_as_one_does(words):
    """Each with a half of every batch: the same weights and phi as one process with whole batches."""
    results = [ended.result for ended in run_ranks(distributed, words=[words], join=False)]
    cases.agree_with_one_process(results, cases.alone(int(words[0]), int(words[2])))
