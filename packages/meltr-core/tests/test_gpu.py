"""What only a GPU can show of core; run by ``nox -s gpu``."""

from __future__ import annotations

import copy
import functools
import itertools
import time
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from meltr import AIDFPLite, Bilevel, LinearCombiner, LossTransformer, NoDirection, PrimaryStep, Setup
from meltr.autograd.graphed import GraphedLosses, cuda_record
from meltr.autograd.random_state import RandomState
from meltr.devices import Delayed
from meltr.engine.batches import to_device
from meltr.engine.clock import Clock
from meltr.engine.run import execute
from meltr.hypergradients.estimators import ForwardMode, OneSidedDifference, PerTask
from meltr.plugins import discover
from meltr.settings import resolve

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
CUDA = torch.device("cuda")


FusedAdam = functools.partial(torch.optim.Adam, fused=True)


class NeverCaptured(LossTransformer):
    """A subclass is not captured: the reference of what a captured one computes."""


class Heads(nn.Module):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, 128, dropout=0.0, batch_first=True, norm_first=True)
        self.trunk = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.heads = nn.ModuleList(nn.Linear(width, 10) for _ in range(4))

    def losses(self, x, labels):
        hidden = self.trunk(x).mean(1)
        return {f"t{i}": F.cross_entropy(head(hidden), labels[i]) for i, head in enumerate(self.heads)}


NAMES = ("t0", "t1", "t2", "t3")


def data(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(32, 16, 64, generator=generator)
    return x.to(CUDA), torch.randint(0, 10, (4, 32), generator=generator).to(CUDA)


def loop(kind=LossTransformer, *, seed: int = 0, autocast=None, outer=FusedAdam, **settings):
    torch.manual_seed(seed)
    model = Heads().to(CUDA)
    m = kind(NAMES).to(CUDA)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    return (
        model,
        m,
        optimizer,
        Bilevel(model, m, outer(m.parameters(), 1e-3), setup=Setup(autocast=autocast), **settings),
    )


def train(model, optimizer, bilevel, steps: int, batch=None):
    x, labels = batch or data()
    for _ in range(steps):
        optimizer.zero_grad()
        result = bilevel.backward(lambda: model.losses(x, labels))
        optimizer.step()
        bilevel.after_step()
    return result


@pytest.mark.parametrize("direct_term", [False, True])
def test_a_captured_combiner_computes_what_the_plain_one_does(direct_term):
    """It starts at random: at the sum, |m(l) - sum(l)| is at its kink, where rounding decides the sign.

    phi takes steps of SGD: the gradient of the attention's key bias is zero, and Adam would divide noise by noise.
    """
    settings = {"estimator": PerTask(), "direct_term": direct_term, "every": 1, "outer": torch.optim.SGD}
    ends = []
    for kind in (LossTransformer, NeverCaptured):
        model, m, optimizer, bilevel = loop(functools.partial(kind, start="random"), **settings)
        result = train(model, optimizer, bilevel, 20)
        ends.append([*m.parameters(), *model.parameters(), result.sensitivities, result.combined])
        captured = bilevel._inner._function._weights.replays
        assert captured == (kind is LossTransformer)
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-4, atol=2e-5)


def test_a_capture_follows_modes_and_weights_that_are_loaded():
    model, m, optimizer, bilevel = loop(every=1, estimator=PerTask())
    train(model, optimizer, bilevel, 6)
    other = LossTransformer(NAMES, start="random").to(CUDA)
    m.load_state_dict(other.state_dict())
    values = torch.tensor([1.0, 2.0, 0.5, 3.0], device=CUDA)
    plain = NeverCaptured(NAMES).to(CUDA)
    plain.load_state_dict(other.state_dict())
    function = bilevel._inner._function
    for mode in (True, False, True):
        m.train(mode)
        plain.train(mode)
        for _ in range(4):
            combined, a = function.task_weights(values)
            values_leaf = values.clone().requires_grad_()
            expected = plain(values_leaf)
            (slopes,) = torch.autograd.grad(expected, values_leaf)
            torch.testing.assert_close(combined, expected.detach(), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(a, slopes, rtol=1e-4, atol=1e-5)


def test_results_are_not_overwritten_by_later_steps():
    model, _, optimizer, bilevel = loop()
    train(model, optimizer, bilevel, 6)
    first = train(model, optimizer, bilevel, 1)
    kept = copy.deepcopy((first.sensitivities, first.combined, first.losses))
    train(model, optimizer, bilevel, 4)
    assert torch.equal(first.sensitivities, kept[0])
    assert torch.equal(first.combined, kept[1])
    assert torch.equal(first.losses, kept[2])


def waits(work) -> list[str]:
    """Where the host waited for the device, by torch's own count."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return [f"{each.filename}:{each.lineno}" for each in caught if "synchronizing" in str(each.message)]


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("scheme", "estimator", "most"),
    [
        (AIDFPLite(), ForwardMode, 0),
        (AIDFPLite(), PerTask, 0),
        (AIDFPLite(), OneSidedDifference, 1),
        (PrimaryStep(), PerTask, 0),
        (NoDirection(), PerTask, 0),
    ],
    ids=["forward", "per_task", "one_sided", "primary-step", "none"],
)
def test_the_host_does_not_wait_for_the_device(scheme, estimator, most, autocast):
    model, _, optimizer, bilevel = loop(scheme=scheme, estimator=estimator(), autocast=autocast)
    batch = data()
    train(model, optimizer, bilevel, 12, batch)
    found = [waits(lambda: train(model, optimizer, bilevel, 1, batch)) for _ in range(6)]
    for place, where in enumerate(found):
        assert len(where) <= (most if place % 3 == 0 else 0), where


@pytest.mark.parametrize("kind", [LossTransformer, LinearCombiner])
def test_a_g_that_is_not_finite_is_skipped_on_the_device(kind):
    lines: list[str] = []
    model, m, optimizer, bilevel = loop(kind, estimator=PerTask(), every=1, log=lines.append)
    train(model, optimizer, bilevel, 4)
    before = [p.detach().clone() for p in m.parameters()]
    x, labels = data()
    result = bilevel.backward(lambda: {**model.losses(x, labels), "t0": model.losses(x, labels)["t0"] * float("nan")})
    assert result.outer is not None
    assert not result.outer.applied
    assert all(torch.equal(p, q) for p, q in zip(m.parameters(), before, strict=True))
    optimizer.zero_grad()
    train(model, optimizer, bilevel, 2)
    assert any("not finite" in line for line in lines)
    assert any(not torch.equal(p, q) for p, q in zip(m.parameters(), before, strict=True))


def test_batches_and_delayed_values_arrive_whole():
    for seed in range(20):
        torch.manual_seed(seed)
        batch = {"x": torch.randn(256, 1024), "n": [torch.arange(7), "text"], "none": None}
        moved = to_device(batch, CUDA)
        assert torch.equal(moved["x"].cpu(), batch["x"])
        assert torch.equal(moved["n"][0].cpu(), batch["n"][0])
        late = Delayed(moved["x"].sum(1))
        moved["x"].zero_()
        torch.testing.assert_close(torch.tensor(late.values()), batch["x"].sum(1), rtol=1e-4, atol=1e-3)


class Dropping(Heads):
    """With dropout, BatchNorm and a constant buffer, each of which a recording must treat as an evaluation does."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(64)
        self.register_buffer("shift", torch.linspace(0, 1, 64))

    def losses(self, batch):
        hidden = F.dropout(self.norm(self.trunk(batch["x"]).mean(1) + self.shift), 0.3)
        return {f"t{i}": F.cross_entropy(head(hidden), batch["y"][i]) for i, head in enumerate(self.heads)}


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["per_task", "forward", "one_sided", "primary-step", "recompute", "none"])
def test_a_recorded_loop_is_the_plain_one(kind, autocast):
    """The same draws, gradients, buffers and weights, whether the losses are CUDA graphs or not."""
    made = {"per_task": PerTask, "forward": ForwardMode, "one_sided": OneSidedDifference}
    ends = []
    for recorded in (False, True):
        torch.manual_seed(0)
        model, m = Dropping().to(CUDA), LossTransformer(NAMES, width=64, start="random").to(CUDA)
        outer = torch.optim.SGD(m.parameters(), 1e-3)
        optimizer = torch.optim.SGD(model.parameters(), 1e-2)
        settings = {"estimator": made.get(kind, PerTask)(), "retain_graph": kind != "recompute"}
        settings |= {"primary-step": {"scheme": PrimaryStep()}, "none": {"scheme": NoDirection()}}.get(kind, {})
        bilevel = Bilevel(model, m, outer, setup=Setup(autocast=autocast, recorded=recorded), **settings)
        lines: list[str] = []
        graphs = GraphedLosses(model, cuda_record(CUDA), lambda: RandomState({CUDA}), lines.append)
        seen = []
        for number in range(12):
            x, y = data(number)
            torch.manual_seed(number)
            batch = {"x": x, "y": y}
            plain = functools.partial(model.losses, batch)
            compute = graphs.of(model.losses, batch, NAMES) if recorded else plain
            optimizer.zero_grad()
            result = bilevel.backward(compute)
            optimizer.step()
            bilevel.after_step()
            seen += [result.losses, result.sensitivities]
        assert lines == []
        assert graphs.count >= (2 if kind in ("forward", "one_sided") else 1) * recorded
        ends.append([*seen, *model.parameters(), *m.parameters(), *model.buffers()])
    for expected, value in zip(*ends, strict=True):
        torch.testing.assert_close(value, expected, rtol=2e-2 if autocast else 1e-3, atol=2e-3 if autocast else 1e-4)


@pytest.mark.parametrize("noticed", [True, False], ids=["before the capture", "in the capture"])
def test_losses_that_wait_for_the_device_are_not_recorded(noticed):
    """Later steps go on as if nothing had been tried; torch's debug mode does not see a wait for the whole device."""
    model, lines = Dropping().to(CUDA), []
    graphs = GraphedLosses(model, cuda_record(CUDA), lambda: RandomState({CUDA}), lines.append)
    x, y = data()
    stream = torch.cuda.current_stream()

    def waiting(batch):
        losses = model.losses(batch)
        if not noticed:
            torch.cuda.synchronize()
        return losses if not noticed or float(losses["t0"].detach()) > -1 else {}

    for number in range(6):
        torch.manual_seed(number)
        losses = graphs.of(waiting, {"x": x, "y": y}, NAMES)()
        torch.manual_seed(number)
        expected = model.losses({"x": x, "y": y})  # draws for dropout
        torch.testing.assert_close(losses["t0"], expected["t0"])
    losses["t0"].backward()
    assert graphs.count == 0
    assert len(lines) == 1
    assert torch.cuda.current_stream() == stream
    held = []
    for _ in range(20):
        moved = to_device(torch.ones(2**20), CUDA)  # used by two streams, as every batch
        del moved
        torch.cuda.synchronize()
        held.append(torch.cuda.memory_stats()["active_bytes.all.current"])
    assert held[-1] == held[1]


def sample_runs() -> list[tuple[str, str, str]]:
    """Every backbone and task that is installed, with an embedded data set or the first one."""
    registry = discover()
    found = []
    for backbone in registry.backbones.values():
        for each in backbone.tasks:
            embedded = [name for name in each.datasets if registry.datasets[name].embedded]
            found.append((backbone.name, each.task, (embedded or each.datasets)[0]))
    return found


@pytest.mark.parametrize(("backbone", "task", "dataset"), sample_runs())
def test_every_miniature_trains(backbone, task, dataset, tmp_path, monkeypatch):
    if task == "captioning":
        pytest.importorskip("pycocoevalcap")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    registry = discover()
    miniature = not registry.datasets[dataset].embedded
    flags = {"device": "cuda", "train.max_steps": 7, "train.precision": "bf16", "sample": miniature}
    spec = resolve(registry, backbone=backbone, task=task, dataset=dataset, flags=flags)
    results = execute(spec, run_dir=tmp_path / "run", registry=registry)
    assert results["device"].startswith("cuda")
    assert results["test"]["metrics"]


@pytest.mark.parametrize(
    ("host", "device", "bound"),
    [(0.02, 0, "launches"), (0.0, 50_000_000, "computation")],
    ids=["the host sleeps", "the device sleeps"],
)
def test_the_clock_tells_which_of_the_two_waits(host, device, bound):
    def batches():
        while True:
            yield torch.ones(8)

    clock, before = Clock(CUDA), None
    clock.start()
    for step, batch in enumerate(itertools.islice(clock.timed(batches()), 12), 1):
        moved = to_device(batch, CUDA)
        torch.cuda._sleep(device)
        time.sleep(host)
        after = Delayed(moved.sum())
        if before is not None:
            assert before.values() == 8  # as the guard of a run does, one step later
        before = after
        clock.end_step(outer=step % 3 == 0)
    assert clock.spent.bound_by == bound
