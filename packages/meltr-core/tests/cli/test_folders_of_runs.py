"""Who may write into the folder of a run: one process at a time, and no new run over an earlier one."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import call
from meltr import UserError
from meltr.folders.claims import Claim
from meltr.folders.locks import NAME, LockedError, RunLock
from places import TOY

OPTIONS = (
    "--plugin", TOY, "--backbone", "toy", "--task", "classification", "--dataset", "rings", "--combiner", "sum",
    "--epochs", "1", "--batch-size", "64", "--device", "cpu", "--quiet",
)  # fmt: skip


def run(folder: Path, *words: object):
    return call("run", *OPTIONS, "--output-dir", folder, *words)


def in_other_process(code: str, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=False)


HOLD = """
import sys, time
from pathlib import Path
from meltr.folders.locks import RunLock
lock = RunLock.take(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Start processes that hold the lock of a folder until the test ends."""
    started = []

    def hold(folder: Path) -> subprocess.Popen[str]:
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-c", HOLD, str(folder)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield hold
    for each in started:
        each.kill()
        each.wait()


def claim_at_once(barrier, output: str, queue) -> None:
    claim = Claim(Path(output) / "run", resume=False, named=False, overwrite=False, say=print)
    barrier.wait()
    queue.put(str(claim.enter()))
    barrier.wait()  # all hold theirs
    claim.leave()


def test_runs_that_start_at_once_get_folders_of_their_own(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(8), context.Queue()
    processes = [context.Process(target=claim_at_once, args=(barrier, str(tmp_path), queue)) for _ in range(8)]
    for process in processes:
        process.start()
    found = sorted(queue.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(60)
    expected = [tmp_path / "run", *(tmp_path / f"run-{number}" for number in range(2, 9))]
    assert found == sorted(map(str, expected))
    assert list(tmp_path.iterdir()) == []  # nothing was begun in any of them


def test_a_run_that_is_starting_keeps_its_default_name(tmp_path, holder):
    holder(tmp_path / "toy-classification-rings-sum")
    assert run(tmp_path).exit_code == 0
    assert (tmp_path / "toy-classification-rings-sum-2" / "results.json").exists()


def test_a_run_in_use_is_neither_resumed_nor_replaced(tmp_path, holder):
    assert run(tmp_path, "--name", "mine").exit_code == 0
    (tmp_path / "mine" / "results.json").unlink()
    pid = holder(tmp_path / "mine").pid
    before = {path: path.read_bytes() for path in (tmp_path / "mine").rglob("*") if path.is_file()}
    for words in (
        ("--resume", tmp_path / "mine"),
        (*OPTIONS, "--output-dir", tmp_path, "--name", "mine", "--overwrite"),
    ):
        done = call("run", *words)
        assert done.exit_code == 2
        assert f"mine is in use by process {pid} on host {socket.gethostname()} since 20" in done.stderr
    assert {path: path.read_bytes() for path in before} == before
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_name_that_another_run_has_just_taken_is_refused(tmp_path, holder):
    pid = holder(tmp_path / "mine").pid
    done = run(tmp_path, "--name", "mine")
    assert done.exit_code == 2
    assert f"in use by process {pid}" in done.stderr


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path, holder):
    assert run(tmp_path, "--name", "mine").exit_code == 0
    assert not (tmp_path / "mine" / NAME).exists()
    (tmp_path / "mine" / "results.json").unlink()
    process = holder(tmp_path / "mine")
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = call("run", "--resume", tmp_path / "mine", "--quiet")
    assert done.exit_code == 0, done.output
    assert f"took over the lock of process {process.pid} on host {socket.gethostname()}" in done.stderr
    assert not (tmp_path / "mine" / NAME).exists()


def test_the_lock_of_another_host_is_taken_over_only_by_force(tmp_path):
    assert run(tmp_path, "--name", "mine").exit_code == 0
    (tmp_path / "mine" / "results.json").unlink()
    (tmp_path / "mine" / NAME).write_text('{"pid": 7, "host": "elsewhere.example", "since": "2026-01-01 00:00:00"}')
    done = call("run", "--resume", tmp_path / "mine", "--quiet")
    assert done.exit_code == 2
    assert "in use by process 7 on host elsewhere.example since 2026-01-01 00:00:00" in done.stderr
    assert "--force-unlock" in done.stderr
    assert call("run", "--resume", tmp_path / "mine", "--quiet", "--force-unlock").exit_code == 0


def test_without_locks_of_the_system_the_process_in_the_file_decides(tmp_path, holder, monkeypatch):
    monkeypatch.setattr("meltr.folders.locks.fcntl", None)
    process = holder(tmp_path / "mine")
    with pytest.raises(LockedError, match=f"process {process.pid}"):
        RunLock.take(tmp_path / "mine")
    process.kill()
    process.wait()
    lock = RunLock.take(tmp_path / "mine")
    assert f"process {process.pid}" in str(lock.stale)
    lock.release()
    assert not (tmp_path / "mine" / NAME).exists()


@pytest.mark.parametrize("content", ["", "junk", "[1]", "\x00" * 50, '{"host": 3}'])
def test_a_broken_lock_does_no_harm(tmp_path, content):
    (tmp_path / NAME).write_text(content)
    lock = RunLock.take(tmp_path, force=True)
    assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    with pytest.raises(LockedError, match="in use by process"):
        RunLock.take(tmp_path)
    lock.release()
    lock.release()
    RunLock.take(tmp_path).release()


def test_a_seed_is_not_resumed_while_all_of_them_run(tmp_path, holder):
    assert run(tmp_path, "--name", "mine", "--seed", "0,1").exit_code == 0
    (tmp_path / "mine" / "results.json").unlink()
    (tmp_path / "mine" / "seed-1" / "results.json").unlink()
    pid = holder(tmp_path / "mine" / "seed-1").pid
    done = call("run", "--resume", tmp_path / "mine", "--quiet")
    assert done.exit_code == 2
    assert f"seed-1 is in use by process {pid}" in done.stderr


def test_nothing_is_left_of_a_run_that_could_not_begin(tmp_path):
    done = run(tmp_path / "runs", "--name", "mine", "--set", "precision=fp16", "--set", "scheme=aid-cg", "--set",
               "estimator=nothing")  # fmt: skip
    assert done.exit_code != 0
    assert not (tmp_path / "runs").exists()


KILLED = f"""
import os, sys
from pathlib import Path
from meltr.folders.claims import Claim
claim = Claim(Path(sys.argv[1]), resume=False, named=True, overwrite=True, say=print)
folder = claim.enter()
(folder / "run.yaml").write_text("a: b")
if sys.argv[2] == "worked":
    (folder / "checkpoints" / "step-000001").mkdir(parents=True)
os.kill(os.getpid(), {int(signal.SIGKILL)})
"""


@pytest.mark.parametrize("words", [("--overwrite",), ()])
def test_an_overwrite_that_was_killed_before_its_first_checkpoint_loses_nothing(tmp_path, words):
    assert run(tmp_path, "--name", "mine").exit_code == 0
    (tmp_path / "mine" / "old.txt").write_text("old")
    results = (tmp_path / "mine" / "results.json").read_text()
    assert in_other_process(KILLED, tmp_path / "mine", "").returncode == -signal.SIGKILL
    aside = tmp_path / ".mine.replaced"
    assert (aside / "results.json").read_text() == results
    done = run(tmp_path, "--name", "mine", *words)
    if words:  # It is brought back, and then replaced by a run that ends.
        assert f"the earlier run is back in {tmp_path / 'mine'}" in done.stderr
        assert done.exit_code == 0, done.output
        assert not (tmp_path / "mine" / "old.txt").exists()
    else:
        assert done.exit_code == 2
        assert "already a run" in done.stderr
        assert f"The run that it was to replace is in {aside}" in done.stderr
        assert (aside / "results.json").read_text() == results
    assert aside.exists() == (not words)


def test_an_overwrite_that_was_killed_after_its_first_checkpoint_has_replaced_the_earlier_run(tmp_path):
    assert run(tmp_path, "--name", "mine").exit_code == 0
    assert in_other_process(KILLED, tmp_path / "mine", "worked").returncode == -signal.SIGKILL
    assert (tmp_path / ".mine.replaced" / "results.json").exists()
    claim = Claim(tmp_path / "mine", resume=True, named=True, overwrite=False, say=(said := []).append)
    claim.enter()
    assert any(f"the run that this one replaces is in {tmp_path / '.mine.replaced'}" in line for line in said)
    assert not claim.leave()
    assert not (tmp_path / ".mine.replaced").exists()


def test_what_is_not_a_run_is_not_replaced(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("cat")
    with pytest.raises(UserError, match="is not a run folder"):
        Claim(tmp_path / "photos", resume=False, named=True, overwrite=True, say=print).enter()
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]
    shutil.rmtree(tmp_path / "photos")
