"""Two processes train like one with the joined batch: DistributedDataParallel and FSDP2, schemes and estimators."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from places import HELPERS

SCRIPT = HELPERS / "parallel_training.py"

DDP = (
    "mean",
    "rows",
    "contrastive",
    "forward",
    "per_task",
    "contrastive-forward",
    "accumulate",
    "aid-fp",
    "itd",
    "held-out",
)
FSDP = ("mean", "contrastive", "per_task", "accumulate", "aid-fp", "itd", "held-out")
TWO = [*(f"ddp:{case}" for case in DDP), *(f"fsdp:{case}" for case in FSDP)]


def torchrun(processes: int, target: Path, cases: list[str]) -> list[dict[str, dict[str, torch.Tensor]]]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(SCRIPT), str(target), *cases], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(target, weights_only=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What one process and two found, each after 20 steps with an outer step every second one."""
    folder = tmp_path_factory.mktemp("parallel")
    one = torchrun(1, folder / "one.pt", [f"one:{case}" for case in DDP])[0]
    return one, torchrun(2, folder / "two.pt", TWO)


@pytest.mark.parametrize("name", TWO)
def test_two_processes_end_with_the_weights_of_one(trained, name):
    one, (first, second) = trained
    expected = one[f"one:{name.partition(':')[2]}"]
    for part in ("w", "phi"):
        gap = (first[name][part] - expected[part]).norm() / expected[part].norm()
        assert gap <= 1e-5, (part, float(gap))
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
