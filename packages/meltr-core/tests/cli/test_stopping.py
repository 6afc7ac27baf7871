"""``meltr run`` is asked to stop: the step ends, is saved, and the resumed run ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from changed_toy import changed_toy
from command_line import call
from meltr import UserError
from meltr.cli._times import seconds_of
from meltr.errors import StoppedRun
from places import TOY

LOSSES = "        points, label = batch\n"
EVALUATE = "        points, label = data.tensors\n"
OPTIONS = (
    "--backbone", "toy", "--task", "classification", "--dataset", "rings", "--epochs", "2", "--batch-size", "32",
    "--device", "cpu", "--quiet", "--set", "width=16", "--set", "heads=2", "--set", "log_every=4", "--set", "every=2",
)  # fmt: skip
"""16 steps, evaluated after 8 and 16."""

REQUESTS = '''
REQUESTS = {}


def requested(what):
    """Send the signal that the test asks for, at the call that it asks for."""
    import os, pathlib
    file = pathlib.Path(__file__).with_name("request.txt")
    if not file.exists():
        return
    name, at, number = file.read_text().split()
    REQUESTS[what] = REQUESTS.get(what, 0) + (what == name)
    if REQUESTS[what] == int(at):
        file.unlink()
        os.kill(os.getpid(), int(number))


class Toy:
'''


@pytest.fixture
def meltr_run(tmp_path):
    """Start the toy, which can send a signal to itself: ``ask("step" or "evaluate", at call, signal)``."""
    plugin = changed_toy(
        tmp_path,
        ("class Toy:\n", REQUESTS),
        (LOSSES, f'        requested("step")\n{LOSSES}'),
        (EVALUATE, f'        requested("evaluate")\n{EVALUATE}'),
    )
    inherited = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with Ctrl-C ignored,
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and nohup with SIGHUP ignored
    handlers = {number: signal.getsignal(number) for number in SIGNALS}

    def start(*words, ask=None):
        if ask is not None:
            (tmp_path / "request.txt").write_text(" ".join(map(str, ask)))
        return call("run", "--plugin", plugin, "--output-dir", tmp_path, *words)

    yield start
    after = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in inherited.items():
        signal.signal(number, handler)
    assert after == handlers


SIGNALS = {signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP", signal.SIGUSR1: "SIGUSR1", signal.SIGINT: "Ctrl-C"}


def lines(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("examples_per_second", "memory_mb")} for row in rows]


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("backbone", "combiner"):
        weights = [load_file(folder / "checkpoints" / "last" / f"{name}.safetensors") for folder in (one, other)]
        assert weights[0].keys() == weights[1].keys()
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert lines(one) == lines(other)
    results = [json.loads((folder / "results.json").read_text()) for folder in (one, other)]
    assert all(results[0][key] == results[1][key] for key in ("validation", "test", "steps", "outer_steps"))


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_the_run_after_the_step_and_nothing_is_lost(meltr_run, tmp_path, number):
    assert meltr_run(*OPTIONS, "--name", "whole").exit_code == 0
    done = meltr_run(*OPTIONS, "--name", "cut", ask=("step", 6, int(number)))
    assert done.exit_code == 128 + number
    assert f"stopped by {SIGNALS[number]} at step " in done.stderr
    assert f"continue with: meltr run --resume {tmp_path / 'cut'}" in done.stderr
    assert "Traceback" not in done.stderr
    last = (tmp_path / "cut" / "checkpoints" / "last").resolve()
    step = int(last.name[-6:])
    assert 0 < step < 8
    assert f"at step {step} of 16; saved: {last}" in done.stderr
    assert meltr_run("--resume", tmp_path / "cut", "--quiet").exit_code == 0
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_an_evaluation_is_ended_at_once_and_done_by_the_resumed_run(meltr_run, tmp_path):
    assert meltr_run(*OPTIONS, "--name", "whole").exit_code == 0
    done = meltr_run(*OPTIONS, "--name", "cut", ask=("evaluate", 1, int(signal.SIGTERM)))
    assert done.exit_code == 143
    assert "at step 8 of 16" in done.stderr
    assert not any(row["kind"] == "evaluation" for row in lines(tmp_path / "cut"))
    assert meltr_run("--resume", tmp_path / "cut", "--quiet").exit_code == 0
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_the_test_of_the_best_checkpoint_is_done_by_the_resumed_run(meltr_run, tmp_path):
    assert meltr_run(*OPTIONS, "--name", "whole").exit_code == 0
    done = meltr_run(*OPTIONS, "--name", "cut", ask=("evaluate", 3, int(signal.SIGHUP)))
    assert done.exit_code == 129
    assert not (tmp_path / "cut" / "results.json").exists()
    assert meltr_run("--resume", tmp_path / "cut", "--quiet").exit_code == 0
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_limit_of_time_ends_the_run_with_a_checkpoint(meltr_run, tmp_path):
    """The alarm comes in the first step, then in an evaluation of the resumed run."""
    assert meltr_run(*OPTIONS, "--name", "whole").exit_code == 0
    words = (*OPTIONS, "--name", "cut")
    for where in ("step", "evaluate"):
        done = meltr_run(*words, "--max-time", "90m", ask=(where, 1, int(signal.SIGALRM)))
        assert done.exit_code == 124
        assert "stopped by --max-time 5400 s" in done.stderr
        assert f"continue with: meltr run --resume {tmp_path / 'cut'}" in done.stderr
        words = ("--resume", tmp_path / "cut", "--quiet")
    assert meltr_run(*words).exit_code == 0
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_lengths_of_time():
    assert seconds_of(None) is None
    texts = {"90": 90, "1.5h": 5400, "45m": 2700, "2d": 172800, "30:00": 1800, "1:30:00": 5400, "0.4": 0.4}
    assert {text: seconds_of(text) for text in texts} == texts
    for text in ("", "0", "-1", "1w", "soon", "1:2:3:4", "nan", "inf", "1e3", "9" * 30):
        with pytest.raises(UserError, match="is not a length of time"):
            seconds_of(text)


@pytest.mark.slow
def test_a_second_signal_ends_the_process_at_once(tmp_path):
    """The first one asks while a step sleeps, so that the process does not come to its end."""
    plugin = changed_toy(
        tmp_path,
        (LOSSES, f"        import time; open({str(tmp_path / 'begun')!r}, 'w').close(); time.sleep(60)\n{LOSSES}"),
    )
    command = [sys.executable, "-m", "meltr", "run", "--plugin", plugin, *OPTIONS, "--output-dir", tmp_path]
    process = subprocess.Popen([*map(str, command), "--name", "run"], env={**os.environ, "OMP_NUM_THREADS": "1"})
    end = time.monotonic() + 120
    while not (tmp_path / "begun").exists() and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert process.poll() is None  # it waits for the step
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == -signal.SIGTERM


def test_a_run_that_is_stopped_before_it_begins_says_so(monkeypatch, tmp_path):
    def stopped(*_):
        raise StoppedRun("SIGTERM", 143)

    monkeypatch.setattr("meltr.cli.run.performed", stopped)
    result = call("run", "--plugin", str(TOY), *OPTIONS, "--output-dir", str(tmp_path))
    assert result.exit_code == 143
    assert result.stderr.endswith("stopped by SIGTERM before the run began; nothing was written\n")
    assert not list(tmp_path.iterdir())


def test_a_run_that_keeps_nothing_says_where_it_was_stopped(meltr_run):
    done = meltr_run(*OPTIONS, "--fast-dev-run", ask=("step", 3, int(signal.SIGTERM)))
    assert done.exit_code == 143
    assert "stopped by SIGTERM at step " in done.stderr
    assert "before the run began" not in done.stderr
