"""Whole runs: a checkpoint gives its numbers back, and an interrupted run ends as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from meltr.engine.run import evaluate_run, execute
from meltr.hookspecs import hookimpl
from meltr.plugins import Registry
from meltr.seeding import seed_everything
from meltr.specs import RunSpec
from meltr.testing.case import CUT, STEPS, Case, TrainedFolder

ON_GPU = {"rtol": 1e-3, "atol": 1e-5}
"""Difference of weights after a resumed run on a device whose sums have no fixed order."""


class Runs(Case):
    """Training, checkpoints and resume, each on a few steps."""

    def test_training_changes_weights_and_counts_steps(self, trained: TrainedFolder) -> None:
        """All steps are done, an outer step is among them, and the losses are logged by their names."""
        results = trained.results
        assert results["steps"] == STEPS
        assert results["outer_steps"] >= 1
        first, last = (_weights(trained.path / "checkpoints" / f"step-{step:06d}") for step in (CUT, STEPS))
        assert any(not torch.equal(first[name], last[name]) for name in first), "training changed no weight"

    def test_a_checkpoint_gives_the_metrics_back(self, trained: TrainedFolder, registry: Registry) -> None:
        """``meltr evaluate`` of the best checkpoint finds the metrics of the run: its weights are the whole model."""
        split = "validation" if trained.results["test"] is None else "test"
        seed_everything(5)
        found = evaluate_run(trained.path, registry=registry, split=split)
        expected = trained.results[split]
        assert found["count"] == expected["count"]
        assert found["metrics"] == pytest.approx(expected["metrics"], rel=1e-6, abs=1e-6, nan_ok=True)

    def test_a_resumed_run_ends_like_an_uninterrupted_one(
        self, trained: TrainedFolder, spec: RunSpec, registry: Registry, tmp_path: Path
    ) -> None:
        """To the last bit on the CPU: weights, combiner, metrics and log."""
        seed_everything(7)
        with pytest.raises(_StopError):
            execute(spec, run_dir=tmp_path / "cut", registry=registry, observers=[_StopAt(f"step-{CUT:06d}")])
        seed_everything(9)
        resumed = execute(spec, run_dir=tmp_path / "cut", registry=registry, resume=True)
        whole = trained.results
        assert (resumed["steps"], resumed["outer_steps"]) == (whole["steps"], whole["outer_steps"])
        exact = {"rtol": 0.0, "atol": 0.0} if self.on_cpu(spec) else ON_GPU
        for part in ("backbone", "combiner"):
            one, other = (
                _weights(folder / "checkpoints" / "last", part) for folder in (trained.path, tmp_path / "cut")
            )
            assert one.keys() == other.keys()
            for name, value in one.items():
                same = torch.allclose(value.double(), other[name].double(), equal_nan=True, **exact)
                assert same, f"{part}: {name!r} differs after resuming; draw from the generators alone, keep no state"
        if self.on_cpu(spec):
            assert resumed["test"] == whole["test"]
            assert _log(tmp_path / "cut") == _log(trained.path)


class _StopError(Exception):
    """Ends a run in the middle."""


class _StopAt:
    """Ends a run when a checkpoint is complete."""

    def __init__(self, name: str) -> None:
        self.name = name

    @hookimpl
    def on_checkpoint(self, path: Path) -> None:
        if path.name == self.name:
            raise _StopError


def _weights(checkpoint: Path, part: str = "backbone") -> dict[str, torch.Tensor]:
    if checkpoint.is_file():  # A link where there are no links.
        checkpoint = checkpoint.parent / checkpoint.read_text(encoding="utf-8").strip()
    return load_file(checkpoint / f"{part}.safetensors")


def _log(run: Path) -> list[tuple[object, ...]]:
    """Return the numbers of every line of ``metrics.jsonl`` that do not depend on the clock or the memory."""
    import json

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    clock = {"examples_per_second", "memory_mb", "seconds", "eta_seconds"}
    return [tuple((key, str(value)) for key, value in line.items() if key not in clock) for line in lines]
