"""Sharded checkpoints: from two processes to one and back, exactly; and nothing in them is executed."""

from __future__ import annotations

import importlib.util
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata

import meltr
from meltr.parallel.sharded import load_sharded, read_full, save_sharded
from places import HELPERS

SCRIPT = HELPERS / "sharded_training.py"


def script_module():
    spec = importlib.util.spec_from_file_location("sharded_training", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


training = script_module()


def torchrun(what: str, folder: Path) -> dict:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(SCRIPT)]
    done = subprocess.run(
        [*command, what, str(folder)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / f"{what}.pt", weights_only=True)


def same(one: dict, other: dict, tolerance: float = 0.0) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=tolerance, atol=tolerance, msg=name)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    return folder, torchrun("save", folder)


def test_one_process_continues_what_two_saved(saved):
    folder, found = saved
    model, optimizer = training.make(None)
    load_sharded(folder / "shards", model, optimizer)
    same(training.whole(model, optimizer), found["before"])
    training.step(model, optimizer, None)
    same(training.whole(model, optimizer), found["after"], 1e-6)


def test_two_processes_continue_what_one_saved(saved):
    folder, found = saved
    model, optimizer = training.make(None)
    load_sharded(folder / "shards", model, optimizer)
    save_sharded(folder / "single", model, optimizer)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder / "full.pt")
    loaded = torchrun("load", folder)
    same(loaded["sharded"], found["before"])
    same(loaded["full"], found["before"])
    same(loaded["next"], found["after"], 1e-6)


def test_whole_tensors_are_read_without_a_process_group(saved):
    folder, found = saved
    weights = read_full(folder / "shards")
    same(weights, {name: tensor for name, tensor in found["before"].items() if "@" not in name})


def test_a_checkpoint_of_another_model_is_refused(saved):
    folder, _ = saved
    with pytest.raises(meltr.UserError, match=r"missing 2 \(first: bias\); unexpected"):
        load_sharded(folder / "shards", nn.Linear(2, 2), None)
    other = training.Net()
    other.head = nn.Linear(5, 2)
    with pytest.raises(meltr.UserError, match=r"of another shape 2 \(first: head.bias\)"):
        load_sharded(folder / "shards", other, None)


class Evil:
    def __reduce__(self):
        return (os.system, ("touch executed",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(Evil()), "which no checkpoint needs"),
        (b"junk", "Cannot read"),
        (pickle.dumps({"a": 1}), "holds a dict"),
    ],
)
def test_an_index_runs_no_code(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".metadata").write_bytes(content)
    with pytest.raises(meltr.UserError, match=message):
        read_full(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_missing_and_truncated_files_are_named(tmp_path):
    with pytest.raises(meltr.UserError, match=r"no \.metadata"):
        read_full(tmp_path)
    model = nn.Linear(3, 3)
    save_sharded(tmp_path / "c", model, torch.optim.SGD(model.parameters()))
    for file in (tmp_path / "c").glob("*.distcp"):
        file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(meltr.UserError, match="Cannot read"):
        load_sharded(tmp_path / "c", nn.Linear(3, 3), None)


def test_an_index_cannot_change_a_type(tmp_path):
    """Else one hostile file would change how the next one is read."""
    build = b"N}X\x07\x00\x00\x00versionX\x08\x00\x00\x00poisoneds\x86b."
    (tmp_path / ".metadata").write_bytes(b"\x80\x02ctorch.distributed.checkpoint.metadata\nMetadata\n" + build)
    with pytest.raises(meltr.UserError, match="changes a type"):
        read_full(tmp_path)
    assert Metadata.version is None


def test_a_full_disk_is_an_os_error(tmp_path, monkeypatch):
    """Torch's own exception is no Exception, and would pass everything that means to catch it."""

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FileSystemWriter, "write_data", full)
    model = nn.Linear(3, 3)
    with pytest.raises(OSError, match="No space left on device"):
        save_sharded(tmp_path / "c", model, torch.optim.SGD(model.parameters()))
