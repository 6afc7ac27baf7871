"""Two processes train like one with the joined batch: DistributedDataParallel and FSDP2, schemes and estimators."""

from __future__ import annotations

import pytest
import torch

from meltr.parallel.ranks import Ranks
from parallel_training import outer_steps_with_uneven_work, train_all
from ranks_helper import run_ranks

DDP = (
    "mean",
    "rows",
    "contrastive",
    "forward",
    "per_task",
    "contrastive-forward",
    "accumulate",
    "accumulate-last",
    "aid-fp",
    "itd",
    "held-out",
    "primary-step",
    "primary-step-per_task",
    "budget",
    "cross",
)
FSDP = ("mean", "contrastive", "per_task", "accumulate", "accumulate-last", "aid-fp", "itd", "held-out", *DDP[-4:])
TWO = [*(f"ddp:{case}" for case in DDP), *(f"fsdp:{case}" for case in FSDP)]


@pytest.fixture(scope="module")
def trained():
    """What one process and two found, each after four steps with an outer step every second one."""
    torch.set_num_threads(1)
    one = train_all(Ranks.single(torch.device("cpu")), *(f"one:{case}" for case in DDP))
    return one, [ended.result for ended in run_ranks(train_all, words=TWO, timeout=600)]


@pytest.mark.parametrize("name", TWO)
def test_two_processes_end_with_the_weights_of_one(trained, name):
    one, (first, second) = trained
    expected = one[f"one:{name.partition(':')[2]}"]
    for part, tolerance in {"w": 1e-5, "phi": 1e-5, "products": 1e-3}.items():
        gap = (first[name][part] - expected[part]).norm() / expected[part].norm()
        assert gap <= tolerance, (part, float(gap))
    assert torch.equal(first[name]["phi"], second[name]["phi"])
    assert torch.equal(first[name]["w"], second[name]["w"])


@pytest.mark.parametrize("name", TWO)
def test_the_combiner_was_trained_and_so_were_the_weights(trained, name):
    """The equality above means nothing if nothing moved."""
    _, (first, _) = trained
    assert first[name]["products"].norm() > 0
    assert first[name]["phi_moved"] > 1e-4 * first[name]["phi"].norm()


def test_a_contrastive_loss_without_gathered_negatives_would_differ(trained):
    one, _ = trained
    gap = (one["one:contrastive"]["w"] - one["one:mean"]["w"]).norm() / one["one:mean"]["w"].norm()
    assert gap > 1e-3


def test_processes_with_uneven_work_take_their_outer_steps_together():
    """Each counts other operations; one that decided alone would wait for the other for ever."""
    first, second = (ended.result for ended in run_ranks(outer_steps_with_uneven_work, timeout=300))
    assert first == second
    assert len(first) > 3
