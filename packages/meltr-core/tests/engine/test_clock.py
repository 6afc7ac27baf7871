"""Where the time of a run goes, told by a clock that the tests move: every second has to be found in its part."""

from __future__ import annotations

import json
from itertools import islice
from types import SimpleNamespace

import pytest
import torch

from changed_toy import run_toy
from left_behind import LeftBehind
from meltr.engine import clock as module
from meltr.engine.checkpoints import load_training
from meltr.engine.clock import FIRST, Clock, Spent
from meltr.observers import text
from places import TOY


@pytest.fixture
def now(monkeypatch):
    """The seconds that the clock reads; code under test moves them."""
    seen = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(module.time, "perf_counter", lambda: seen.seconds)
    return seen


def batches(now, seconds):
    while True:
        now.seconds += seconds
        yield None


def train(clock, now, steps, *, wait=0.5, plain=1.0, outer=3.0, every=3):
    """Take steps of known length, each `every`-th of them with an outer step."""
    clock.start()
    for step, _ in enumerate(islice(clock.timed(batches(now, wait)), steps), 1):
        has_outer = step % every == 0
        now.seconds += outer if has_outer else plain
        clock.end_step(outer=has_outer)


def test_every_second_is_found_in_its_part(now):
    asides = []
    clock = Clock(torch.device("cpu"), asides.append)
    train(clock, now, 12)
    with clock.aside("evaluations"):
        now.seconds += 7
    with clock.aside("checkpoints"):
        now.seconds += 2
    assert clock.spent.summary() == {
        "batches": 12 * 0.5,
        "steps": 8 * 1.0 + 4 * 3.0,
        "outer_steps": 4 * (3.0 - 1.0),
        "evaluations": 7,
        "checkpoints": 2,
    }
    assert clock.spent.training == 26
    assert asides == [7, 2]


def test_work_that_fails_is_counted_too(now):
    def fail():
        with clock.aside("evaluations"):
            now.seconds += 2
            raise KeyError

    clock = Clock(torch.device("cpu"))
    with pytest.raises(KeyError):
        fail()
    assert clock.spent.evaluations == 2


def test_work_between_two_steps_belongs_to_the_later_one_unless_it_is_put_aside(now):
    clock = Clock(torch.device("cpu"))
    clock.start()
    for _ in islice(clock.timed(batches(now, 0.0)), 2):
        now.seconds += 1
        clock.end_step(outer=False)
        now.seconds += 0.25  # a log line
        with clock.aside("checkpoints"):
            now.seconds += 50
    assert clock.spent.steps == 1 + 0.25 + 1


def test_what_only_the_first_steps_of_a_kind_do_is_not_the_price_of_an_outer_step(now):
    clock = Clock(torch.device("cpu"))
    train(clock, now, 3 * FIRST, outer=100.0)
    assert clock.spent.summary()["outer_steps"] is None
    train(clock, now, 6)
    assert clock.spent.summary()["outer_steps"] == (FIRST + 2) * (3.0 - 1.0)


@pytest.mark.parametrize(("every", "expected"), [(1, None), (1000, 0.0)])
def test_the_price_needs_steps_of_both_kinds(now, every, expected):
    clock = Clock(torch.device("cpu"))
    train(clock, now, 12, every=every)
    assert clock.spent.in_outer_steps == expected


@pytest.mark.parametrize(("wait", "bound"), [(0.05, "computation"), (0.5, "batches")])
def test_waiting_for_more_than_a_tenth_bounds_a_run(now, wait, bound):
    clock = Clock(torch.device("cpu"))
    train(clock, now, 3, wait=5.0)  # the first batches of a run, for which processes have to start
    assert clock.spent.bound_by is None
    train(clock, now, 30, wait=wait)
    assert clock.spent.bound_by == bound


def test_a_resumed_run_adds_to_what_was_spent(now):
    first, second, whole = (Clock(torch.device("cpu")) for _ in range(3))
    train(first, now, 12)
    stored = json.loads(json.dumps(first.state_dict()))
    now.seconds += 1000  # between the two, nothing ran
    second.load_state_dict(stored)
    train(second, now, 12)
    train(whole, now, 24)
    assert second.spent.summary() == whole.spent.summary()


class Event:
    """An event of a pretended device: it comes when the device is through with the work that it was given before."""

    def __init__(self, device):
        self.device, self.at = device, None

    def record(self, stream):
        self.device.busy_until = self.at = max(self.device.now.seconds, self.device.busy_until)

    def query(self):
        return self.at <= self.device.now.seconds

    def elapsed_time(self, other):
        assert self.query()
        assert other.query()
        return 1000 * (other.at - self.at)


@pytest.fixture
def gpu(monkeypatch, now):
    """A device that works beside the host."""
    device = SimpleNamespace(busy_until=0.0, now=now)
    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: Event(device))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    return device


def on_gpu(gpu, *, wait, host, device, steps=60):
    """Return what was spent if host and device need these seconds per step, and thrice as much for outer steps.

    As in a real run, the host is never more than a step ahead.
    """
    clock = Clock(torch.device("cuda"))
    clock.start()
    for step, _ in enumerate(islice(clock.timed(batches(gpu.now, wait)), steps), 1):
        factor = 3 if step % 3 == 0 else 1
        before = gpu.busy_until
        gpu.busy_until = max(gpu.now.seconds, before) + factor * device
        gpu.now.seconds = max(gpu.now.seconds + factor * host, before)
        gpu.busy_until = max(gpu.busy_until, gpu.now.seconds)  # the last kernel ends after its launch
        clock.end_step(outer=factor == 3)
    return clock.spent


@pytest.mark.parametrize(
    ("wait", "host", "device", "bound"),
    [
        (0.0, 1.0, 0.1, "launches"),
        (0.0, 0.1, 1.0, "computation"),
        (0.5, 1.0, 0.1, "batches"),
        (0.5, 0.1, 1.0, "computation"),  # the device works while the host waits for the batch
    ],
)
def test_a_gpu_tells_who_waits_for_whom(gpu, wait, host, device, bound):
    spent = on_gpu(gpu, wait=wait, host=host, device=device)
    assert spent.bound_by == bound
    assert spent.in_outer_steps == pytest.approx(20 * 2 * max(host, device), rel=0.02)


def test_a_run_tells_it_and_goes_on_with_it(tmp_path):
    left = LeftBehind("step-000003", tmp_path / "cut")
    whole = run_toy(TOY, tmp_path / "whole", observers=[left], **{"train.checkpoint_every": 3})
    before = Spent(**load_training(tmp_path / "cut" / "checkpoints" / "step-000003" / "training.pt")["clock"])
    resumed = run_toy(TOY, tmp_path / "cut", resume=True, **{"train.checkpoint_every": 3})
    for results in (whole, resumed):
        parts = results["time"]
        assert parts["batches"] + parts["steps"] == pytest.approx(results["seconds"], abs=2e-3)
        assert text.time_text(results).startswith("time: steps ")
    assert (
        sum(whole["time"][part] for part in ("batches", "steps", "evaluations", "checkpoints")) <= whole["wall_seconds"]
    )
    assert resumed["steps"] == whole["steps"] > 3
    assert resumed["time"]["steps"] > before.steps > 0
    assert resumed["time"]["evaluations"] > before.evaluations == 0


def test_the_line_gives_shares_of_the_whole_and_what_to_do():
    counts = {"outer_steps": 4, "plain": [8, 8.0], "outer": [4, 24.0], "waited": 20.0}
    spent = Spent(batches=30, steps=50, evaluations=15, checkpoints=5, **counts)
    found = {"time": spent.summary(), "bound_by": spent.bound_by}
    assert text.time_text(found) == (
        "time: steps 50% (of which outer steps 20%), waiting for batches 30%, evaluations 15%, checkpoints 5%; "
        "bound by reading batches: try --set workers=N"
    )
    assert text.time_text({}) == ""  # of an earlier version
