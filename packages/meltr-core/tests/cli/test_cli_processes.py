"""``torchrun ... -m meltr run``: one folder, the numbers of one process, and what happens when a process dies."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from command_line import call
from meltr.cli.app import main
from meltr.parallel.sharded import read_full
from places import TOY
from ranks_helper import run_ranks

MORTAL = f'''
"""The toy without its random numbers, BatchNorm made harmless; process 1 dies once at its 14th step if DIE is set."""
import importlib.util, os, torch, meltr

spec = importlib.util.spec_from_file_location("toy_of_mortal", {str(TOY)!r})
toy = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toy)
register_datasets = toy.register_datasets
steps = 0

@meltr.hookimpl
def register_backbones():
    task = meltr.BackboneTask(task="classification", losses=("ce", "norm"), datasets=("rings",))
    return [meltr.BackboneInfo(name="mortal", summary="", adapter=f"{{__name__}}:Mortal", tasks=(task,))]

class Mortal(toy.Toy):
    @meltr.hookimpl
    def build_model(self):
        model = toy.Net()
        model.body[1], model.body[3] = torch.nn.Identity(), torch.nn.Identity()
        for block in model.blocks:
            block.dropout = torch.nn.Identity()
        return model

    @meltr.hookimpl
    def compute_task_losses(self, model, batch, context):
        global steps
        steps += torch.is_grad_enabled()
        again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        if os.environ.get("DIE") and context.rank == 1 and steps == 14 and not again:
            os._exit(7)
        points, label = batch
        hidden = model(points)
        logits = model.classify(hidden)
        losses = {{"ce": torch.nn.functional.cross_entropy(logits, label), "norm": hidden.square().mean()}}
        return {{name: losses[name] for name in context.losses}}

    build_data = toy.Toy.build_data
    evaluate = toy.Toy.evaluate
'''


WORDS = (
    *("--plugin", "mortal.py", "--backbone", "mortal", "--task", "classification", "--dataset", "rings"),
    *("--epochs", "3", "--batch-size", "32", "--lr", "0.05", "--device", "cpu", "--set", "log_every=1"),
    *("--set", "checkpoint_every=5", "--set", "keep_checkpoints=9", "--set", "optimizer=sgd"),
    # Not the loss transformer: the bias of its keys has a gradient of zero but for rounding, and Adam makes full
    # steps of rounding. test_parallel.py compares loss transformers, with SGD.
    *("--set", "estimator=per_task", "--combiner", "linear"),
)


@pytest.fixture(autouse=True)
def plugin(tmp_path):
    path = tmp_path / "mortal.py"
    path.write_text(MORTAL)
    return path


@pytest.fixture
def meltr_run(tmp_path, monkeypatch):
    """Run ``meltr run`` in `tmp_path` over some processes; a single one is that of the test."""
    monkeypatch.chdir(tmp_path)

    def start(*options: str, processes: int, torchrun: tuple[str, ...] = (), die: bool = False, resume: bool = False):
        words = [*([] if resume else WORDS), *options]
        if processes == 1:
            done = call("run", *words)
            return subprocess.CompletedProcess(words, done.exit_code, done.stdout, done.stderr)
        prefix = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DIE": "1" if die else ""}
        command = [*prefix, *torchrun, "-m", "meltr", "run", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)

    return start


def weights(run: Path, shards: bool = False) -> dict[str, torch.Tensor]:
    last = run / "checkpoints" / "last"
    backbone = read_full(last / "shards") if shards else load_file(last / "backbone.safetensors")
    return {**backbone, **{f"phi.{k}": v for k, v in load_file(last / "combiner.safetensors").items()}}


def close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=tolerance, atol=tolerance, msg=name)


@pytest.fixture
def reference(meltr_run, tmp_path):
    done = meltr_run("--name", "one", processes=1)
    assert done.returncode == 0, done.stderr
    return weights(tmp_path / "runs/one")


def test_two_processes_make_one_run_with_the_numbers_of_one(tmp_path, reference):
    """In forks with the environment that torchrun sets; the slow tests start torchrun itself."""
    first, second = run_ranks(type_words, words=[tmp_path, *WORDS], join=False)
    assert (first.errors + second.errors).count("test top1 =") == 1
    (run,) = (path for path in (tmp_path / "runs").iterdir() if path.name != "one")
    close(weights(run), reference)
    results = json.loads((run / "results.json").read_text())
    assert (results["processes"], results["steps"], results["outer_steps"]) == (2, 24, 7)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 25))


@pytest.mark.slow
def test_sharded_run_dies_says_so_and_goes_on_in_one_process(meltr_run, tmp_path, reference):
    done = meltr_run("--name", "cut", "--set", "parallel=fsdp", processes=2, die=True)
    assert done.returncode != 0
    assert re.search(r"Process 0 of 2 lost another one.*", done.stderr), done.stderr
    assert "meltr run --resume" in done.stderr
    assert (tmp_path / "runs/cut/checkpoints/last").resolve().name == "step-000010"
    assert (tmp_path / "runs/cut/checkpoints/last/shards").is_dir()
    assert not (tmp_path / "runs/cut/results.json").exists()
    done = meltr_run("--resume", "runs/cut", processes=1, resume=True)
    assert done.returncode == 0, done.stderr
    close(weights(tmp_path / "runs/cut"), reference)


@pytest.mark.slow
def test_torchrun_restarts_a_dead_process_and_the_run_goes_on(meltr_run, tmp_path, reference):
    restart = ("--max-restarts=2", "--monitor-interval=0.2")
    done = meltr_run("--set", "parallel=fsdp", processes=2, torchrun=restart, die=True)
    assert done.returncode == 0, done.stderr
    (run,) = (path for path in (tmp_path / "runs").iterdir() if path.name != "one")
    assert "resumed at step 10 of 24" in (run / "log.txt").read_text()
    close(weights(run, shards=True), reference)


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_in_two_shards(meltr_run, tmp_path, reference):
    done = meltr_run("--name", "mine", "--set", "parallel=fsdp", processes=1)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs/mine"
    (folder / "results.json").unlink()
    (folder / "checkpoints/last").unlink()
    (folder / "checkpoints/last").symlink_to("step-000010")
    done = meltr_run("--resume", "runs/mine", processes=2, resume=True)
    assert done.returncode == 0, done.stderr
    close(weights(folder, shards=True), reference)


def type_words(_, folder, *words):
    """What torchrun starts in every process, but in a fork."""
    os.chdir(folder)
    sys.argv = ["meltr", "run", *words]
    main()


def test_the_same_batch_in_all_processes_is_refused(plugin, tmp_path):
    text = plugin.read_text()
    deaf = text.replace(
        "    build_data = toy.Toy.build_data\n",
        """
    @meltr.hookimpl
    def build_data(self, context):
        import dataclasses
        return toy.Toy().build_data(dataclasses.replace(context, rank=0, world_size=1))
""",
    )
    assert deaf != text
    plugin.write_text(deaf)
    for done in run_ranks(type_words, words=[tmp_path, *WORDS, "--name", "deaf"], check=False, join=False):
        assert done.code != 0
        assert "returned the same training batch in all 2 processes" in done.errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--name", "x", "--batch-size", "33"), "batch_size=33 cannot be split into 2 processes x 1 micro-batches"),
        (("--set", "lr=fast"), "train.lr"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(tmp_path, words, message):
    for done in run_ranks(type_words, words=[tmp_path, *WORDS, *words], check=False, join=False):
        assert done.code == 2
        assert message in done.errors
        assert "Traceback" not in done.errors
    assert not (tmp_path / "runs").exists()
