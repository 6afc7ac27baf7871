"""Damage of every kind to the checkpoints of an interrupted run: it is found, named, and the run goes on without it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import meltr
from changed_toy import EVALUATION, changed_toy, run_toy
from command_line import call
from meltr.combiners.fixed import plain_sum
from meltr.engine.checkpoints import Checkpoints, load_tensors, save_module
from meltr.parallel.ranks import Ranks
from messages import Messages
from places import TOY

SETTINGS = {
    "combiner": "sum", "train.epochs": 2, "train.checkpoint_every": 3, "train.keep_checkpoints": 9, "seed": 3,
}  # fmt: skip


class StopError(Exception):
    pass


class StopAt15:
    @meltr.hookimpl
    def on_checkpoint(self, path):
        if path.name == "step-000015":
            raise StopError


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A whole run, and one that ended after its checkpoint of step 15 of 16; the best one is that of step 8."""
    folder = tmp_path_factory.mktemp("runs")
    run_toy(TOY, folder / "whole", **SETTINGS)
    with pytest.raises(StopError):
        run_toy(TOY, folder / "cut", observers=[StopAt15()], **SETTINGS)
    return folder


@pytest.fixture
def cut(runs, tmp_path) -> Path:
    return Path(shutil.copytree(runs / "cut", tmp_path / "cut", symlinks=True))


def same_end(runs: Path, folder: Path) -> bool:
    one, other = (load_file(each / "checkpoints/last/backbone.safetensors") for each in (runs / "whole", folder))
    results = [json.loads((each / "results.json").read_text()) for each in (runs / "whole", folder)]
    return (
        one.keys() == other.keys()
        and all(torch.equal(one[name], other[name]) for name in one)
        and all(results[0][split] == results[1][split] for split in ("validation", "test"))
    )


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def exchange(last: Path, name: str) -> None:
    shutil.copy(last.with_name("step-000012") / name, last / name)


DAMAGES = {
    "flipped weights": (lambda last: flip(last / "backbone.safetensors"), "backbone.safetensors has another checksum"),
    "flipped optimiser": (lambda last: flip(last / "training.pt"), "training.pt has another checksum"),
    "flipped combiner": (lambda last: flip(last / "combiner.safetensors"), "combiner.safetensors has another checksum"),
    "of another step": (lambda last: exchange(last, "backbone.safetensors"), "backbone.safetensors has another"),
    "all of another step": (
        lambda last: [exchange(last, path.name) for path in last.iterdir()],
        "manifest.json is of step 12",
    ),
    "truncated": (lambda last: os.truncate(last / "training.pt", 100), "training.pt has 100 bytes instead of"),
    "emptied": (lambda last: os.truncate(last / "backbone.safetensors", 0), "has 0 bytes instead of"),
    "zeroed": (
        lambda last: (last / "training.pt").write_bytes(bytes((last / "training.pt").stat().st_size)),
        "training.pt has another checksum",
    ),
    "deleted": (lambda last: (last / "combiner.safetensors").unlink(), "combiner.safetensors is missing"),
    "a folder": (
        lambda last: ((last / "training.pt").unlink(), (last / "training.pt").mkdir()),
        "training.pt is missing",
    ),
    "without manifest": (lambda last: (last / "manifest.json").unlink(), "manifest.json is missing"),
    "broken manifest": (lambda last: (last / "manifest.json").write_text("{"), "manifest.json cannot be read"),
    "no manifest": (lambda last: (last / "manifest.json").write_text('{"format": 1}'), "is not a manifest"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(runs, cut, kind):
    damage, words = DAMAGES[kind]
    damage(cut / "checkpoints" / "step-000015")
    watch = Messages()
    run_toy(TOY, cut, resume=True, observers=[watch], **SETTINGS)
    (warning,) = watch.warnings
    assert "checkpoint step-000015 is damaged: " in warning
    assert words in warning
    assert warning.endswith("continuing from step 12")
    assert ("info", "resumed at step 12 of 16") in watch.seen
    assert same_end(runs, cut)


LOST_LINKS = {
    "gone": (lambda folder: (folder / "last").unlink(), "there is no 'last'"),
    "dangling": (lambda folder: shutil.rmtree(folder / "step-000015"), "'last' leads to step-000015, which is not"),
    "circle": (lambda folder: _link(folder, "last", "last"), "'last' leads to itself"),
    "elsewhere": (lambda folder: _link(folder, "last", "../../x"), "'last' leads to '../../x'"),
}


def _link(folder: Path, name: str, target: str) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to(target)


@pytest.mark.parametrize("kind", LOST_LINKS)
def test_a_lost_last_is_named_and_the_newest_whole_one_taken(runs, cut, kind):
    damage, words = LOST_LINKS[kind]
    damage(cut / "checkpoints")
    watch = Messages()
    run_toy(TOY, cut, resume=True, observers=[watch], **SETTINGS)
    (warning,) = watch.warnings
    assert words in warning
    assert warning.endswith(f"continuing from step {12 if kind == 'dangling' else 15}")
    assert same_end(runs, cut)


def test_without_a_whole_checkpoint_a_run_starts_from_zero_only_if_asked(runs, cut):
    for each in (cut / "checkpoints").glob("step-*"):
        flip(each / "training.pt")
    before = {path: path.read_bytes() for path in cut.rglob("*") if path.is_file()}
    done = call("run", "--resume", cut, "--quiet")
    assert done.exit_code == 2
    assert "no checkpoint in" in done.stderr
    assert done.stderr.count("has another checksum") == 6
    assert f"meltr run --resume {cut} --from-scratch" in done.stderr
    assert {path: path.read_bytes() for path in before if path != cut / "log.txt"} == {
        path: content for path, content in before.items() if path != cut / "log.txt"
    }
    done = call("run", "--resume", cut, "--from-scratch", "--quiet")
    assert done.exit_code == 0, done.output
    assert "starting from step 0, as asked" in done.stderr
    assert same_end(runs, cut)


def test_checkpoints_that_were_all_deleted_are_missed(cut):
    shutil.rmtree(cut / "checkpoints")
    done = call("run", "--resume", cut, "--quiet")
    assert done.exit_code == 2
    assert "no checkpoint in" in done.stderr


def test_a_run_that_never_had_a_checkpoint_starts_from_zero(runs, cut):
    shutil.rmtree(cut / "checkpoints")
    (cut / "log.txt").unlink()
    watch = Messages()
    run_toy(TOY, cut, resume=True, observers=[watch], **SETTINGS)
    assert watch.warnings == []
    assert same_end(runs, cut)


def test_a_lost_best_checkpoint_is_said_and_the_next_best_one_counts(cut):
    """The evaluation of step 8 cannot be tested any more; that of step 16 is the best that is left."""
    assert Checkpoints(cut / "checkpoints").target("best") == "step-000008"
    flip(cut / "checkpoints" / "step-000008" / "backbone.safetensors")
    watch = Messages()
    results = run_toy(TOY, cut, resume=True, observers=[watch], **SETTINGS)
    (warning,) = watch.warnings
    assert "checkpoint step-000008, the best one so far, is lost" in warning
    assert results["validation"]["step"] == 16
    assert Checkpoints(cut / "checkpoints").resolve("best").name == "step-000016"


def test_evaluation_refuses_a_damaged_best_checkpoint(runs, tmp_path):
    folder = Path(shutil.copytree(runs / "whole", tmp_path / "whole", symlinks=True))
    best = Checkpoints(folder / "checkpoints").resolve("best")
    flip(best / "backbone.safetensors")
    done = call("evaluate", "--trust", folder)
    assert done.exit_code == 2
    assert f"checkpoint {best.name}, which 'best' names, in {folder / 'checkpoints'} is damaged" in done.stderr
    assert "--checkpoint: step-000003, step-000006" in done.stderr
    assert call("evaluate", "--trust", folder, "--checkpoint", "step-000003").exit_code == 0
    assert call("evaluate", "--trust", folder, "--checkpoint", best.name).exit_code == 2


def test_a_best_checkpoint_lost_before_its_test_is_replaced_by_the_last_one_and_said_to_be(tmp_path):
    """All evaluations are equally good here, so the first one is the best."""
    plugin = changed_toy(tmp_path, (EVALUATION, 'meltr.Evaluation({"top1": 50.0, "top5": 100.0}, len(label))'))
    first = run_toy(plugin, tmp_path / "run", **SETTINGS)
    assert first["validation"]["step"] == 8
    flip(tmp_path / "run" / "checkpoints" / "step-000008" / "backbone.safetensors")
    (tmp_path / "run" / "results.json").unlink()
    watch = Messages()
    results = run_toy(plugin, tmp_path / "run", resume=True, observers=[watch], **SETTINGS)
    assert "checkpoint step-000008, the best one so far, is lost" in watch.warnings[0]
    assert results["validation"]["step"] == 16
    assert Checkpoints(tmp_path / "run" / "checkpoints").resolve("best").name == "step-000016"


@pytest.mark.parametrize("target", ["best", "step-000099", "../elsewhere"])
def test_evaluation_refuses_a_best_that_leads_nowhere(runs, tmp_path, target):
    folder = Path(shutil.copytree(runs / "whole", tmp_path / "whole", symlinks=True))
    _link(folder / "checkpoints", "best", target)
    done = call("evaluate", "--trust", folder)
    assert done.exit_code == 2
    assert "checkpoints/best leads to " in done.stderr
    assert not (folder / "evaluation-test.json").exists()


def test_a_checkpoint_of_an_earlier_version_is_loaded_and_said_to_be(runs, cut):
    """Earlier versions wrote no manifest, and a combiner's file that does not speak of one."""
    for each in (cut / "checkpoints").glob("step-*"):
        (each / "manifest.json").unlink()
        save_module(each / "combiner.safetensors", plain_sum(("ce", "denoise", "norm")), settings="{}")
        state = torch.load(each / "training.pt", weights_only=True)
        torch.save({k: v for k, v in state.items() if k not in ("meter", "due")}, each / "training.pt")
    watch = Messages()
    run_toy(TOY, cut, resume=True, observers=[watch], **SETTINGS)
    (warning,) = watch.warnings
    assert "checkpoint step-000015 is of an earlier version" in warning
    assert same_end(runs, cut)


def test_the_manifest_has_the_checksums_of_the_files(runs):
    folder = runs / "whole" / "checkpoints" / "step-000016"
    content = json.loads((folder / "manifest.json").read_text())
    assert content["step"] == 16
    assert content["files"].keys() == {"backbone.safetensors", "combiner.safetensors", "training.pt"}
    for name, entry in content["files"].items():
        read = (folder / name).read_bytes()
        assert entry == {"bytes": len(read), "sha256": hashlib.sha256(read).hexdigest()}


def test_the_same_weights_give_the_same_bytes(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    words = {"settings": '{"text": "ü \\" \\\\ \\n"}', "z": "1", "a": "2", "m": "3"}
    for number in range(8):
        save_module(tmp_path / f"{number}.safetensors", model, **words)
    assert len({(tmp_path / f"{number}.safetensors").read_bytes() for number in range(8)}) == 1
    read = load_tensors(tmp_path / "0.safetensors")
    assert all(torch.equal(read[name], tensor) for name, tensor in model.state_dict().items())


def test_the_links_name_the_best_one_before_the_last(tmp_path, monkeypatch):
    """A run killed in between goes on from the checkpoint before, and so makes the best one again."""
    model, combiner = nn.Linear(2, 2), plain_sum(["a"])
    kept = Checkpoints(tmp_path / "c")
    optimizer, ranks = torch.optim.SGD(model.parameters()), Ranks.single(torch.device("cpu"))
    order = []
    point = kept.point
    monkeypatch.setattr(kept, "point", lambda link, name: (order.append(link), point(link, name)))
    kept.save(1, model=model, combiner=combiner, optimizer=optimizer, training={}, best=True, ranks=ranks)
    assert order == ["best", "last"]
