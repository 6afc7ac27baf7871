"""Whole runs of a toy backbone: resume, batches of the outer step, checkpoints, contract violations."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import meltr
from changed_toy import changed_toy
from command_line import call
from left_behind import LeftBehind
from meltr.combiners.fixed import plain_sum
from meltr.devices import resolve_device
from meltr.engine.batches import Cursor, ReplayBuffer
from meltr.engine.checkpoints import Checkpoints, load_module, save_module
from meltr.engine.run import MEASURED, evaluate_run, execute
from meltr.optim.building import lr_factor
from meltr.parallel.ranks import Ranks
from meltr.plugins import discover
from meltr.settings import resolve
from places import TOY


def run(tmp_path, name="run", *, plugin=TOY, combiner="meltr", resume=False, observers=(), **settings):
    registry = discover([plugin])
    defaults = {
        "train.epochs": 2, "train.batch_size": 32, "train.log_every": 4, "combiner": combiner, "device": "cpu",
        "train.lr": 0.02,
    }  # fmt: skip
    if combiner == "meltr":
        defaults |= {"combiner_options.width": 16, "combiner_options.heads": 2, "bilevel.outer_lr": 0.01}
    spec = resolve(
        registry, backbone="toy", task="classification", dataset="rings", flags=defaults | settings, plugins=[plugin]
    )
    return execute(spec, run_dir=tmp_path / name, registry=registry, resume=resume, observers=observers)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    last = folder / "checkpoints" / "last"
    return load_file(last / "backbone.safetensors") | {
        f"combiner.{k}": v for k, v in load_file(last / "combiner.safetensors").items()
    }


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("combiner", ["meltr", "linear", "sum", "primary"])
def test_a_run_learns_and_leaves_its_artefacts(tmp_path, combiner):
    results = run(tmp_path, combiner=combiner, **{"train.epochs": 12})
    assert results["test"]["metrics"]["top1"] > 80
    assert results["test"]["count"] == 256
    assert results["steps"] == 12 * 8
    folder = tmp_path / "run"
    assert json.loads((folder / "results.json").read_text()) == results
    for name in ("run.yaml", "environment.json", "metrics.jsonl", "checkpoints/last/backbone.safetensors"):
        assert (folder / name).exists(), name
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    outer = [line for line in lines if line["kind"] == "outer"]
    assert len(outer) == (31 if combiner in ("meltr", "linear") else 0)
    assert results["losses"] == (["ce"] if combiner == "primary" else ["ce", "denoise", "norm"])


def test_runs_start_alike_whatever_the_combiner(tmp_path):
    """Else a comparison over seeds would not be paired."""
    first = {}
    for combiner in ("sum", "meltr"):
        run(tmp_path, combiner, combiner=combiner, **{"train.max_steps": 2, "train.log_every": 1})
        lines = [json.loads(line) for line in (tmp_path / combiner / "metrics.jsonl").read_text().splitlines()]
        first[combiner] = [line["losses"] for line in lines if line["kind"] == "train"]
    assert first["sum"] == first["meltr"]


def test_same_seed_same_numbers_other_seed_others(tmp_path):
    run(tmp_path, "a")
    run(tmp_path, "b")
    run(tmp_path, "c", seed=1)
    assert_same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not torch.equal(weights(tmp_path / "a")["body.0.weight"], weights(tmp_path / "c")["body.0.weight"])
    words = ["--config", tmp_path / "a" / "run.yaml", "--output-dir", tmp_path, "--name", "d", "--quiet"]
    assert call("run", *words).exit_code == 0  # the folder alone repeats its run
    measured = (
        "run",
        "seconds",
        "wall_seconds",
        "time",
        "bound_by",
        "examples_per_second",
        "peak_memory_mb",
        "memory_mb",
    )
    assert set(MEASURED) == set(measured[1:])

    def kept(text):
        return {key: value for key, value in json.loads(text).items() if key not in measured}

    for name in ("b", "d"):
        one, other = tmp_path / "a", tmp_path / name
        texts = [(each / "results.json").read_text() for each in (one, other)]
        assert json.dumps(kept(texts[0])) == json.dumps(kept(texts[1]))
        lines = [(each / "metrics.jsonl").read_text().splitlines() for each in (one, other)]
        assert list(map(kept, lines[0])) == list(map(kept, lines[1]))
        for file in ("backbone.safetensors", "combiner.safetensors"):
            assert (one / "checkpoints/last" / file).read_bytes() == (other / "checkpoints/last" / file).read_bytes()


def test_deterministic_refuses_what_is_not_and_ends_with_its_run(tmp_path):
    text = TOY.read_text()
    change = "        hidden = model(points).put_(torch.tensor([0]), torch.ones(1))\n"
    assert text.count("        hidden = model(points)\n") == 1
    plugin = tmp_path / "undetermined.py"
    plugin.write_text(text.replace("        hidden = model(points)\n", change))
    words = ["run", "--backbone", "toy", "--task", "classification", "--dataset", "rings", "--device", "cpu"]
    words += ["--combiner", "sum", "--set", "max_steps=1", "--output-dir", tmp_path, "--quiet"]
    try:
        refused = call(*words, "--plugin", plugin, "--name", "refused", "--deterministic")
        assert refused.exit_code == 1
        assert "the operation put_ has no deterministic implementation" in refused.stderr
        assert "--set deterministic=false" in refused.stderr
        assert call(*words, "--plugin", plugin, "--name", "plain").exit_code == 0
        assert not torch.are_deterministic_algorithms_enabled()
        assert call(*words, "--plugin", TOY, "--name", "fine", "--deterministic").exit_code == 0
        assert json.loads((tmp_path / "fine" / "results.json").read_text())["spec"]["train"]["deterministic"] is True
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"bilevel.outer_batch": "replay"},
        {"bilevel.outer_batch": "replay", "bilevel.replay_eviction": "random", "bilevel.replay_reset": False},
        {"bilevel.outer_batch": "held_out"},
        {"bilevel.estimator": "difference"},
        {"bilevel.estimator": "per_task", "train.schedule": "cosine", "train.warmup": 0.2, "train.clip_norm": 1.0},
        {"bilevel.outer_batch": "cross", "bilevel.average": 0.9},
        {"bilevel.scheme": "primary-step", "bilevel.average": 0.5},
        {"bilevel.budget": 1.0, "bilevel.every": 1, "bilevel.estimator": "per_task"},
    ],
    ids=["shared", "replay", "replay-random", "held_out", "difference", "per_task", "cross", "primary-step", "budget"],
)
def test_resume_after_any_checkpoint_ends_with_the_same_numbers(tmp_path, settings):
    settings = {"train.epochs": 3, "train.checkpoint_every": 11, **settings}
    run(tmp_path, "whole", observers=[LeftBehind("step-000011", tmp_path / "cut")], **settings)
    run(tmp_path, "cut", resume=True, **settings)
    assert "resumed at step 11 of 24" in (tmp_path / "cut" / "log.txt").read_text()
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))

    def lines(name):
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in row.items() if k not in ("examples_per_second", "memory_mb")} for row in rows]

    assert lines("whole") == lines("cut")


def test_kill_in_the_middle_of_an_epoch_and_resume(tmp_path):
    """kill -9 from outside, through the command line, in the step after the first checkpoint."""
    old = "        points, label = batch\n"
    hang = "        import os, pathlib, time\n        folder = pathlib.Path(os.environ.get('HANGS', 'nowhere'))\n"
    hang += "        if list(folder.glob('checkpoints/step-*')):\n            time.sleep(600)\n"
    plugin = changed_toy(tmp_path, (old, hang + old))
    options = [
        "run", "--plugin", str(plugin), "--backbone", "toy", "--task", "classification", "--dataset", "rings",
        "--device", "cpu", "--epochs", "2", "--batch-size", "32", "--output-dir", str(tmp_path), "--quiet",
        "--set", "width=16", "--set", "heads=2", "--set", "checkpoint_every=5",
    ]  # fmt: skip
    assert call(*options, "--name", "whole").exit_code == 0
    command = [sys.executable, "-m", "meltr", *options, "--name", "cut"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HANGS": str(tmp_path / "cut")}
    process = subprocess.Popen(command, env=environment)
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "cut").glob("checkpoints/step-*"))) < 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut" / "results.json").exists()
    assert call("run", "--resume", tmp_path / "cut", "--quiet", plots=True).exit_code == 0
    drawn = {path.name for path in (tmp_path / "cut" / "plots").iterdir()}
    assert {"losses.png", "sensitivities.png", "evaluation.png"} <= drawn
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    read = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "cut")]
    assert read[0]["test"] == read[1]["test"]
    assert read[0]["validation"] == read[1]["validation"]


def test_evaluate_gives_the_number_of_the_run(tmp_path):
    results = run(tmp_path)
    again = evaluate_run(tmp_path / "run", registry=discover([TOY]), split="test")
    assert again["metrics"] == results["test"]["metrics"]
    assert json.loads((tmp_path / "run" / "evaluation-test.json").read_text()) == again
    with pytest.raises(meltr.UserError, match="no split 'dev'"):
        evaluate_run(tmp_path / "run", registry=discover([TOY]), split="dev")
    with pytest.raises(meltr.UserError, match="no checkpoint 'step-9'"):
        evaluate_run(tmp_path / "run", registry=discover([TOY]), checkpoint="step-9")
    with pytest.raises(meltr.UserError, match="not a run folder"):
        evaluate_run(tmp_path / "nothing", registry=discover([TOY]))


def test_test_split_does_not_choose_the_checkpoint(tmp_path, monkeypatch):
    """`best` is the step with the best validation metric, and the test split is seen once, at the end."""
    seen = []

    class Watch:
        @meltr.hookimpl
        def on_evaluation(self, split, step, evaluation):
            seen.append((split, step, evaluation.metrics["top1"]))

    results = run(tmp_path, observers=[Watch()], **{"train.epochs": 5})
    validation = [(step, value) for split, step, value in seen if split == "validation"]
    assert [split for split, _, _ in seen].count("test") == 1
    assert seen[-1][0] == "test"
    best = max(value for _, value in validation)
    assert results["validation"]["metrics"]["top1"] == best
    assert results["validation"]["step"] == next(step for step, value in validation if value == best)


def variant(tmp_path, old: str, new: str) -> Path:
    text = TOY.read_text()
    assert old in text
    path = tmp_path / f"variant_{abs(hash(new)) % 10**8}.py"
    path.write_text(text.replace(old, new))
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("hidden.square().mean()", "hidden.square()", r"loss 'norm' has shape \(32, 32\)"),
        ("hidden.square().mean()", "hidden.square().mean().detach()", "loss 'norm' carries no gradient"),
        ("hidden.square().mean()", "1.0", "loss 'norm' is a float"),
        ("for name in context.losses}", "for name in ('ce', 'norm')}", "expected \\['ce', 'denoise', 'norm'\\]"),
        ("return {name: losses", "return [losses", None),
        ("return Net()", "return 3", "build_model: returned int"),
        ('"top1": 100 *', '"top": 100 *', "returned no \\['top1'\\]"),
        ("len(label))\n", "len(label)).metrics\n", "evaluate: returned dict"),
    ],
)
def test_contract_violations_name_plugin_hook_and_loss(tmp_path, old, new, message):
    if message is None:
        old, new, message = (
            "return {name: losses[name]() for name in context.losses}",
            "return [losses[name]() for name in context.losses]",
            "compute_task_losses: returned list",
        )
    with pytest.raises(meltr.PluginError, match=message) as caught:
        run(tmp_path, plugin=variant(tmp_path, old, new))
    assert "'toy'" in str(caught.value)


def test_losses_in_another_order_are_sorted(tmp_path):
    plugin = variant(tmp_path, "for name in context.losses}", "for name in reversed(context.losses)}")
    run(tmp_path, "sorted", plugin=plugin)
    run(tmp_path, "plain")
    assert_same(weights(tmp_path / "sorted"), weights(tmp_path / "plain"))


def test_loss_that_turns_nan_is_named_with_step_and_what_was_saved(tmp_path):
    plugin = variant(
        tmp_path, "hidden.square().mean()", "hidden.square().mean() * (1 if points[0, 0] < 1.9 else float('nan'))"
    )
    with pytest.raises(meltr.NonFiniteLossError, match=r"'norm' = nan at step \d+") as caught:
        run(tmp_path, plugin=plugin, **{"train.epochs": 50, "train.checkpoint_every": 1})
    assert "Last checkpoint" in str(caught.value)
    assert "losses=" in str(caught.value)
    if "step-" in str(caught.value):
        assert all(torch.isfinite(w).all() for w in weights(tmp_path / "run").values())


def test_primary_combiner_asks_for_no_other_loss(tmp_path):
    plugin = variant(tmp_path, '"norm": lambda: hidden.square().mean()', '"norm": lambda: 1 / 0')
    run(tmp_path, plugin=plugin, combiner="primary")
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, "other", plugin=plugin, combiner="sum")


def test_negative_sensitivity_of_the_primary_is_reported(tmp_path):
    messages = []

    class Watch:
        @meltr.hookimpl
        def on_message(self, level, message):
            messages.append((level, message))

    run(tmp_path, combiner="fixed", observers=[Watch()], **{
        "combiner_options.weights": (-0.001, 1, 1), "train.log_every": 1
    })  # fmt: skip
    warnings = [message for level, message in messages if level == "warning"]
    assert len(warnings) == 1
    assert "'ce' stays negative" in warnings[0]


def test_full_disk_leaves_the_last_checkpoint_usable(tmp_path, monkeypatch):
    import meltr.engine.checkpoints as module

    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    class Fill:
        @meltr.hookimpl
        def on_checkpoint(self, path):
            monkeypatch.setattr(module, "save_file", full)

    with pytest.raises(meltr.MeltrError, match="No space left") as caught:
        run(tmp_path, observers=[Fill()])
    assert "step-000008" in str(caught.value)
    names = {p.name for p in (tmp_path / "run" / "checkpoints").iterdir()}
    assert names == {"step-000008", "last", "best"}
    monkeypatch.undo()
    run(tmp_path, "whole")
    run(tmp_path, resume=True)
    assert_same(weights(tmp_path / "run"), weights(tmp_path / "whole"))


def test_checkpoints_keep_last_best_and_as_many_as_asked(tmp_path):
    model, combiner = nn.Linear(2, 2), plain_sum(["a"])
    kept = Checkpoints(tmp_path / "c", keep=1)
    optimizer, ranks = torch.optim.SGD(model.parameters()), Ranks.single(torch.device("cpu"))
    for step, best in ((1, True), (2, False), (3, False), (4, False)):
        kept.save(step, model=model, combiner=combiner, optimizer=optimizer, training={}, best=best, ranks=ranks)
    assert {p.name for p in (tmp_path / "c").glob("step-*")} == {"step-000001", "step-000003", "step-000004"}
    assert kept.resolve("best").name == "step-000001"


def test_checkpoint_of_another_model_is_refused(tmp_path):
    save_module(tmp_path / "w.safetensors", nn.Linear(2, 3))
    with pytest.raises(meltr.UserError, match="of another shape 1"):
        load_module(tmp_path / "w.safetensors", nn.Linear(3, 3), "model")
    (tmp_path / "w.safetensors").write_bytes(b"junk")
    with pytest.raises(meltr.UserError, match="Cannot read"):
        load_module(tmp_path / "w.safetensors", nn.Linear(2, 3), "model")


def test_tied_weights_survive_a_checkpoint(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    save_module(tmp_path / "w.safetensors", model)
    assert len(load_file(tmp_path / "w.safetensors")) == 3
    other = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    other[1].weight = other[0].weight
    load_module(tmp_path / "w.safetensors", other, "model")
    assert torch.equal(other[1].weight, model[0].weight)


def test_replay_buffer_evicts_as_released():
    rng = random.Random(0)
    fifo = ReplayBuffer(3, "fifo")
    for index in range(5):
        fifo.append(0, index, index, rng)
    assert fifo.positions() == [[0, 2], [0, 3], [0, 4]]
    assert ReplayBuffer(3, "fifo").draw(rng, "current") == "current"
    dropped = []
    for _ in range(6000):
        buffer = ReplayBuffer(3, "random")
        for index in range(4):
            buffer.append(0, index, index, rng)
        dropped.append(({0, 1, 2, 3} - {i for _, i in buffer.positions()}).pop())
    shares = [dropped.count(i) / len(dropped) for i in range(4)]
    assert shares == pytest.approx([1 / 6, 2 / 6, 3 / 6, 0], abs=0.03)


def test_cursor_is_a_pure_function_of_its_position():
    class Source:
        size = 4

        def __len__(self):
            return 4

        def batches(self, epoch, start=0):
            return iter([(epoch, i) for i in range(start, 4)])

    cursor = Cursor(Source())
    assert [cursor.at(n) for n in (0, 1, 5, 6, 7, 8, 2)] == [(0, 0), (0, 1), (1, 1), (1, 2), (1, 3), (2, 0), (0, 2)]


def test_learning_rate_schedules():
    def at(step, **settings):
        return lr_factor(step, 100, **settings)

    assert [at(s, schedule="constant") for s in (0, 99)] == [1, 1]
    assert at(50, schedule="linear") == pytest.approx(0.5)
    assert at(50, schedule="cosine") == pytest.approx(0.5)
    assert at(25, schedule="cosine") == pytest.approx(0.8535534)
    steps = [at(s, schedule="step", milestones=[50, 75]) for s in (49, 50, 75)]
    assert steps == pytest.approx([1, 0.1, 0.01])
    warm = [at(s, schedule="linear", warmup=0.1) for s in range(12)]
    assert warm[:10] == sorted(warm[:10])
    assert warm[10] == 1 > warm[11]
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    peer = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    for step in range(100):
        assert at(step, schedule="cosine") == pytest.approx(peer.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        peer.step()


def test_devices_that_are_not_there():
    with pytest.raises(meltr.UserError, match="Unknown device 'gpu'"):
        resolve_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(meltr.UserError, match="No CUDA device"):
            resolve_device("cuda")
    assert resolve_device("cpu").type == "cpu"


def test_fast_dev_run_takes_two_outer_steps_and_keeps_nothing(tmp_path):
    registry = discover([TOY])
    flags = {"combiner_options.width": 16, "combiner_options.heads": 2, "device": "cpu", "train.batch_size": 256}
    flags["bilevel.budget"] = 0.05  # which such a short run would use for nothing
    spec = resolve(registry, backbone="toy", task="classification", dataset="rings", flags=flags, plugins=[TOY])
    results = execute(spec, run_dir=tmp_path / "run", registry=registry, fast_dev_run=True)
    assert (results["steps"], results["outer_steps"], results["run"]) == (7, 2, None)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["auto", "difference", "per_task"])
def test_compiled_model_learns(tmp_path, estimator):
    """The outer step keeps the graph of the compiled forward for the inner gradient."""
    results = run(tmp_path, **{"train.compile": True, "bilevel.estimator": estimator, "train.epochs": 12})
    assert results["outer_steps"] == 31
    assert results["test"]["metrics"]["top1"] > 80


def test_double_backward_of_a_compiled_model_is_refused(tmp_path):
    with pytest.raises(meltr.UserError, match="double_backward"):
        run(tmp_path, **{"train.compile": True, "bilevel.estimator": "double_backward"})


@pytest.mark.parametrize(
    ("factory", "message"),
    [("torch.nn.Identity", "returned Identity, expected a meltr.Combiner"), ("meltr.LinearCombiner", "learned=True")],
)
def test_combiners_are_checked(tmp_path, factory, message):
    plugin = tmp_path / f"plugin_{factory.replace('.', '_')}.py"
    plugin.write_text(
        TOY.read_text()
        + f"""

@meltr.hookimpl
def register_combiners():
    return [meltr.CombinerInfo(name="odd", summary="", factory=f"{{__name__}}:odd")]


def odd(losses):
    return {factory}({"losses" if "Linear" in factory else ""})
"""
    )
    with pytest.raises(meltr.PluginError, match=message):
        run(tmp_path, plugin=plugin, combiner="odd")


def test_parameter_groups_are_checked(tmp_path):
    text = TOY.read_text().replace(
        "    @meltr.hookimpl\n    def build_model(self):",
        "    @meltr.hookimpl\n    def parameter_groups(self, model):\n"
        "        return [{'params': model.parameters()}, {'params': model.classify.parameters()}]\n\n"
        "    @meltr.hookimpl\n    def build_model(self):",
    )
    (tmp_path / "twice.py").write_text(text)
    with pytest.raises(meltr.PluginError, match="'toy', hook parameter_groups: a parameter is in two groups"):
        run(tmp_path, plugin=tmp_path / "twice.py")
