"""Settings of training through whole runs: schemes, scope, pieces, precision, checkpointed activations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import meltr
from left_behind import LeftBehind
from meltr.engine.run import execute
from meltr.plugins import discover
from meltr.settings import resolve
from places import TOY

CHOICE = {"backbone": "toy", "task": "classification", "dataset": "rings"}


@pytest.fixture(scope="module")
def registry():
    return discover([TOY])


@pytest.fixture
def run(tmp_path, registry):
    def start(name="run", resume=False, observers=(), **settings):
        flags = {"train.epochs": 3, "train.batch_size": 32, "train.lr": 0.05, "device": "cpu", "train.log_every": 1}
        if settings.get("combiner", "meltr") == "meltr":
            flags |= {"combiner_options.width": 32, "combiner_options.heads": 4, "combiner_options.feedforward": 32}
        spec = resolve(registry, **CHOICE, flags={**flags, **settings})
        return execute(spec, run_dir=tmp_path / name, registry=registry, resume=resume, observers=observers)

    return start


def weights(folder: Path) -> dict[str, torch.Tensor]:
    last = folder / "checkpoints" / "last"
    return {**load_file(last / "backbone.safetensors"), **load_file(last / "combiner.safetensors")}


def outer_lines(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "outer"]


@pytest.mark.parametrize(
    "settings",
    [
        {"bilevel.scheme": "aid-fp", "scheme_options.step": 0.01},
        {"bilevel.scheme": "aid-cg", "scheme_options.damping": 0.1, "scheme_options.hessian": "double_backward"},
        {"bilevel.scheme": "stocbio", "scheme_options.step": 0.01},
        {"bilevel.scheme": "stocbio", "bilevel.outer_batch": "replay", "scheme_options.terms": 1},
        {"bilevel.scheme": "itd", "bilevel.outer_batch": "held_out"},
        {"bilevel.scheme": "sama"},
        {"bilevel.scheme": "itd", "bilevel.outer_fraction": 0.5},
        {"bilevel.scope": "last_block"},
        {"bilevel.scope": "heads", "bilevel.estimator": "difference"},
        {"bilevel.outer_fraction": 0.25},
        {"train.accumulate": 4},
        {"train.accumulate": 4, "train.accumulate_weights": "last"},
        {"train.accumulate": 2, "bilevel.scheme": "aid-fp", "bilevel.outer_fraction": 0.5},
        {"train.precision": "bf16"},
        {"train.precision": "fp16", "train.clip_norm": 1.0},
        {"train.precision": "fp16", "train.accumulate": 2, "bilevel.scheme": "itd"},
        {"train.activation_checkpointing": True},
        {"train.activation_checkpointing": True, "bilevel.estimator": "difference", "train.accumulate": 2},
        {"bilevel.outer_optimizer": "adamw", "bilevel.outer_weight_decay": 0.1},
    ],
    ids=lambda settings: "-".join(str(value) for value in settings.values()),
)
def test_a_run_learns_trains_its_combiner_and_resumes_exactly(run, tmp_path, settings):
    settings = {"train.checkpoint_every": 13, **settings}
    results = run("whole", observers=[LeftBehind("step-000013", tmp_path / "cut")], **settings)
    assert results["test"]["metrics"]["top1"] > 75  # chance is 50
    # After the second inner step, phi is trained every third; with replay after the first.
    assert results["outer_steps"] == (8 if settings.get("bilevel.outer_batch") == "replay" else 7)
    found = outer_lines(tmp_path / "whole")
    assert len(found) == results["outer_steps"]
    sizes = [line["outer_gradient_norm"] for line in found]
    left_out = [
        size for size in sizes if size in ("Infinity", "NaN")
    ]  # a gradient scaler first tries scales that are too large
    assert all(size in left_out or size > 0 for size in sizes)
    assert len(left_out) <= (2 if settings.get("train.precision") == "fp16" else 0)
    run("cut", resume=True, **settings)
    assert "resumed at step 13 of 24" in (tmp_path / "cut" / "log.txt").read_text()
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, cut[name]), name


def test_scheme_none_is_multi_task_learning(run, tmp_path):
    """A loss transformer that starts at the plain sum and stays there descends the plain sum."""
    run("none", **{"bilevel.scheme": "none"})
    run("sum", combiner="sum")
    one, other = (load_file(tmp_path / name / "checkpoints/last/backbone.safetensors") for name in ("none", "sum"))
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("combiner", ["sum", "primary", "linear"])
def test_activation_checkpointing_changes_nothing(run, tmp_path, combiner):
    """Blocks are evaluated again with the same random numbers (the toy has dropout in its blocks)."""
    run("plain", combiner=combiner)
    run("checkpointed", combiner=combiner, **{"train.activation_checkpointing": True})
    one, other = weights(tmp_path / "plain"), weights(tmp_path / "checkpointed")
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        ({"train.accumulate": 5}, "batch_size=32 cannot be split into 1 processes x 5 micro-batches", "multiple of 5"),
        (
            {"train.compile": True, "bilevel.scheme": "aid-fp", "scheme_options.hessian": "double_backward"},
            "double_backward",
            "hessian=difference",
        ),
        ({"train.compile": True, "bilevel.estimator": "double_backward"}, "double_backward", "estimator=auto"),
        ({"train.cuda_graphs": True}, "does not work with device=cpu", "cuda_graphs=false"),
        (
            {"bilevel.scheme": "primary-step", "bilevel.outer_batch": "held_out"},
            "whole batch of an inner step",
            "outer_batch=shared",
        ),
        ({"bilevel.outer_batch": "cross", "bilevel.outer_fraction": 0.5}, "outer_fraction=1", "outer_fraction=1"),
        ({"bilevel.outer_batch": "replay", "bilevel.budget": 0.1}, "outer_batch=replay fixes", "budget=none"),
        ({"bilevel.budget": 5}, "budget", "config schema"),
    ],
)
def test_settings_that_cannot_go_together_are_refused_before_anything_is_written(
    run, tmp_path, settings, message, hint
):
    with pytest.raises(meltr.UserError) as caught:
        run(**settings)
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")
    assert not (tmp_path / "run").exists()


def test_a_budget_is_kept_and_the_results_say_what_was_used(run, tmp_path):
    results = run("within", **{"bilevel.budget": 0.9, "bilevel.every": 1, "bilevel.estimator": "per_task"})
    assert 0 < results["outer_steps"] == len(outer_lines(tmp_path / "within"))
    assert 0 < results["outer_share"] <= 0.9
    assert "budget: an outer step costs at most" in (tmp_path / "within" / "log.txt").read_text()
    without = run("sum", combiner="sum", **{"bilevel.budget": 0.9, "train.max_steps": 2})
    assert (without["outer_steps"], without["outer_share"]) == (0, None)


def test_clip_norm_is_the_length_of_the_whole_gradient(run, tmp_path):
    """One step of SGD from one start: the weights of two limits lie lr times their difference apart."""
    found = []
    for limit in (1e-3, 3e-3):
        settings = {"train.optimizer": "sgd", "train.lr": 0.5, "train.max_steps": 1, "train.clip_norm": limit}
        run(str(limit), **settings)
        found.append(load_file(tmp_path / str(limit) / "checkpoints" / "last" / "backbone.safetensors"))
    apart = torch.cat([(found[0][name] - found[1][name]).flatten().double() for name in found[0]])
    assert float(apart.norm()) == pytest.approx(0.5 * 2e-3, rel=1e-3)
