"""Schedules that start anew, and how they count their steps."""

from __future__ import annotations

import pytest

from meltr.optim.building import inner_lr
from meltr.specs import TrainSpec

EPOCH, EPOCHS, TOTAL = 4, 2, 30
PERIOD = EPOCH * EPOCHS


def rates(**settings: object) -> list[float]:
    spec = TrainSpec(lr=0.5, **settings)
    return [inner_lr(spec, step, total=TOTAL, steps_per_epoch=EPOCH) for step in range(TOTAL)]


def hat(x: float, warmup: float) -> float:
    """Linear up to `warmup`, linear down to 1 (`warmup_linear` of BERT's first PyTorch code)."""
    return x / warmup if x < warmup else max((x - 1) / (warmup - 1), 0.0)


def test_counted_after_the_update_as_released():
    """The public loop adds 1 to its counter first, and takes it modulo T + 1 (restarts every T + 1 steps)."""
    found = rates(schedule="linear", warmup=0.25, schedule_restart=EPOCHS, schedule_counts="after")
    released = [0.5 * hat((step + 1) % (PERIOD + 1) / (PERIOD + 1), 0.25) for step in range(TOTAL)]
    assert found == pytest.approx(released)
    down = rates(schedule="linear", schedule_restart=EPOCHS, schedule_counts="after")
    assert down == pytest.approx([0.5 * (1 - (step + 1) % (PERIOD + 1) / (PERIOD + 1)) for step in range(TOTAL)])


def test_counted_before_the_update():
    found = rates(schedule="linear", warmup=0.25, schedule_counts="before")
    assert found == pytest.approx([0.5 * hat(step / TOTAL, 0.25) for step in range(TOTAL)])
    assert found[0] == 0


@pytest.mark.parametrize("counts", ["nonzero", "before"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_restarted_schedule_is_a_short_one_again_and_again(schedule, counts):
    found = rates(schedule=schedule, warmup=0.25, schedule_restart=EPOCHS, schedule_counts=counts)
    spec = TrainSpec(lr=0.5, schedule=schedule, warmup=0.25, schedule_counts=counts)
    once = [inner_lr(spec, step, total=PERIOD, steps_per_epoch=EPOCH) for step in range(PERIOD)]
    assert found == (once * 4)[:TOTAL]


def test_without_a_restart_no_step_is_lost_at_rate_zero():
    found = rates(schedule="linear", warmup=0.2)
    assert 0 < found[0] < found[1]
    assert max(found) == pytest.approx(0.5)
    assert min(found[6:]) == pytest.approx(0.5 / 24)
