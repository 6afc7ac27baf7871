"""Sweeps: the runs of a file, which of them are done, and what happens after a kill."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
import yaml

import meltr.engine.run as engine
from command_line import Call, assert_stopped, command_line
from meltr.cli._pieces import Outcome, last_error, log_of, work
from meltr.cli._sweep_results import best, summary
from meltr.cli.sweep import slurm_script
from meltr.errors import StoppedRun, UserError
from meltr.folders.locks import RunLock
from meltr.folders.run_folder import RunFolder
from meltr.plugins import Registry, discover
from meltr.sweeps.pieces import Given, pieces_of
from meltr.sweeps.plan import Sweep, load_sweep, points_of
from places import TOY

SHARED = {
    "backbone": "toy",
    "train.max_steps": 4,
    "train.checkpoint_every": 2,
    "train.threads": 1,
    "combiner_options.width": 16,
    "combiner_options.heads": 2,
    "device": "cpu",
}
CONTENT = {"settings": SHARED, "grid": {"train.lr": ["1e-3", 0.01], "losses": [["ce", "norm"]]}, "seeds": [0, 3]}


@pytest.fixture(autouse=True)
def _core_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load core and the plugins in files."""
    monkeypatch.setenv("MELTR_PLUGINS", "")


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sweep") / "rates.yaml"
    path.write_text(yaml.safe_dump(CONTENT, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture
def registry() -> Registry:
    return discover([TOY])


@pytest.fixture
def meltr() -> Call:
    return command_line(TOY)


class KilledError(BaseException):
    """Stands for a kill, which no handler sees."""


def finished(outcome: Outcome) -> list[str]:
    assert not outcome.failed
    return [piece.name for piece in outcome.ran]


def test_a_grid_has_every_combination_with_every_seed(registry, file, tmp_path):
    grid = {"train.lr": (0.1, 0.2), "losses": (("ce", "norm"), ("ce", "denoise")), "combiner": ("sum", "meltr")}
    sweep = Sweep(name="x", settings={"backbone": "toy"}, grid=grid, seeds=(0, 1, 2))
    pieces = pieces_of(registry, sweep, points_of(sweep), Given(tmp_path / "x"))
    found = {(piece.spec.train.lr, piece.spec.losses, piece.spec.combiner, piece.seed) for piece in pieces}
    assert len(pieces) == len(found) == 2 * 2 * 2 * 3
    assert len({piece.folder for piece in pieces}) == 24
    assert all(piece.spec.seed == piece.seed for piece in pieces)
    assert pieces[0].folder == tmp_path / "x" / "lr=0.1,losses=ce,norm,combiner=sum" / "seed-0"


def test_points_whose_names_would_be_equal_get_numbers():
    sweep = Sweep(name="x", grid={"options.note": ("a/b", "a b", "x" * 300)})
    names = [point.name for point in points_of(sweep)]
    assert len(set(names)) == 3
    assert all(len(name) <= 100 and "/" not in name for name in names)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({}, "needs either a grid or a search"),
        ({"grid": {"train.lr": []}}, "the grid has no value for train.lr"),
        ({"grid": {"train.lr": [1]}, "settings": {"train.lr": 2}}, "train.lr is both in settings and varied"),
        ({"grid": {"seed": [1]}}, r"seeds: \[0, 1, 2\]"),
        ({"grid": {"train.lr": [1]}, "seeds": [1, 1]}, "names a seed twice"),
        ({"grid": {"train.lr": [1]}, "sedes": [1]}, "sedes: Extra inputs"),
        ({"search": {"train.lr": {"low": 2, "high": 1}}}, "needs low < high"),
        ({"search": {"train.lr": {"low": 0, "high": 1, "log": True}}}, "log needs low > 0"),
        ({"search": {"combiner": {"choices": ["sum"], "low": 1}}}, "not both"),
    ],
)
def test_a_file_that_is_not_a_sweep_is_refused(registry, tmp_path, content, problem):
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(UserError, match=f"(?s)bad.yaml is not a sweep.*{problem}"):
        load_sweep(str(path), registry)


def test_a_wrong_setting_names_the_point_and_nothing_is_run(meltr, tmp_path):
    path = tmp_path / "wrong.yaml"
    grid = {"train.lr": [0.1, -1]}
    path.write_text(yaml.safe_dump({"settings": {"backbone": "toy"}, "grid": grid}), encoding="utf-8")
    assert_stopped(
        meltr("sweep", path, "--runs", tmp_path / "runs"), "lr=-1: this setting is not valid", "greater than 0"
    )
    assert not (tmp_path / "runs").exists()
    assert_stopped(meltr("sweep", "table99"), "there is no sweep 'table99'")
    assert_stopped(meltr("sweep", path, "--print", "pbs"), "--print 'pbs' is not known", "slurm")


def test_what_is_printed_is_what_would_run(registry, file, tmp_path):
    """The words of a command, given to `meltr run`, describe the run that the sweep does itself."""
    sweep = load_sweep(str(file), registry)
    given = Given(tmp_path, plugins=(TOY,))
    for piece in pieces_of(registry, sweep, points_of(sweep), given):
        shown = command_line(TOY)(*piece.words(begun=False), "--dry-run", "--json")
        found = json.loads(shown.stdout)
        assert found["run_dir"] == str(piece.folder)
        assert found["spec"] == piece.spec.model_dump(mode="json")


def test_a_killed_sweep_goes_on_and_nothing_is_run_twice(registry, file, tmp_path, monkeypatch):
    """After a kill in the second of four runs: one is done, one goes on from its checkpoint, two are new."""
    sweep = load_sweep(str(file), registry)
    pieces = pieces_of(registry, sweep, points_of(sweep), Given(tmp_path / "rates"))
    execute, ended = engine.execute, []

    def killed(spec, **more):
        results = execute(spec, **more)
        ended.append(spec)
        if len(ended) == 2:
            raise KilledError
        return results

    monkeypatch.setattr(engine, "execute", killed)
    with pytest.raises(KilledError):
        work(registry, pieces)
    (pieces[1].folder / "results.json").unlink()  # it was killed just before it wrote them
    monkeypatch.setattr(engine, "execute", execute)
    assert [piece.state() for piece in pieces] == ["done", "begun", "new", "new"]
    before = (pieces[0].folder / "results.json").stat().st_mtime_ns
    outcome = work(registry, pieces)
    assert finished(outcome) == [piece.name for piece in pieces[1:]]
    assert outcome.done == [pieces[0]]
    assert "resume" in (pieces[1].folder / "log.txt").read_text(encoding="utf-8")
    assert (pieces[0].folder / "results.json").stat().st_mtime_ns == before
    assert finished(work(registry, pieces)) == []
    rows = summary(pieces)
    assert [len(row["test"]) for row in rows] == [2, 2]

    changed = sweep.model_copy(update={"settings": {**sweep.settings, "train.batch_size": 64}})
    others = pieces_of(registry, changed, points_of(changed), Given(tmp_path / "rates"))
    with pytest.raises(UserError, match=r"holds a run with other settings than the sweep has now: train\.batch_size"):
        work(registry, others)


def test_a_run_that_another_process_does_is_left_to_it(registry, file, tmp_path):
    sweep = load_sweep(str(file), registry).model_copy(update={"seeds": (0,)})
    first, second = pieces_of(registry, sweep, points_of(sweep), Given(tmp_path))
    first.folder.mkdir(parents=True)
    lock = RunLock.take(first.folder)
    try:
        outcome = work(registry, [first, second])
    finally:
        lock.release()
    assert outcome.busy == [first]
    assert finished(outcome) == [second.name]


def test_a_run_that_fails_does_not_end_the_others(registry, file, tmp_path, monkeypatch):
    sweep = load_sweep(str(file), registry).model_copy(update={"seeds": (0,)})
    pieces = pieces_of(registry, sweep, points_of(sweep), Given(tmp_path))
    execute = engine.execute

    def failing(spec, **more):
        if spec.train.lr == 1e-3:
            raise ValueError("the plugin has a bug")
        return execute(spec, **more)

    monkeypatch.setattr(engine, "execute", failing)
    outcome = work(registry, pieces)
    assert [(piece, cause) for piece, cause in outcome.failed] == [(pieces[0], "ValueError: the plugin has a bug")]
    assert outcome.ran == [pieces[1]]


def test_several_runs_at_once_are_processes_with_a_log_each(registry, tmp_path, monkeypatch):
    """A stand-in for ``python -m meltr``, so that the test needs no seconds: it fails for one seed."""
    script = tmp_path / "python"
    fails = 'case "$*" in *"--seed 3"*) echo "error: out of paper" >&2; exit 1;; esac'
    script.write_text(f'#!/bin/sh\n{fails}\necho "$OMP_NUM_THREADS $*"\n')
    script.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(script))
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    sweep = Sweep(name="x", settings={"backbone": "toy"}, grid={"train.lr": (0.1,)}, seeds=(0, 3))
    good, bad = pieces_of(registry, sweep, points_of(sweep), Given(tmp_path / "x"))
    outcome = work(registry, [good, bad], jobs=2)
    assert (outcome.ran, outcome.failed) == ([good], [(bad, "out of paper")])
    words = " ".join(good.words(begun=False))
    assert log_of(good).read_text(encoding="utf-8").strip() == f"4 -m meltr {words} --quiet"
    assert last_error(tmp_path / "none.log") is None


def test_a_signal_asks_the_runs_under_way_to_stop(registry, tmp_path, monkeypatch):
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\ntrap 'echo saved; exit 143' TERM\necho ready\nwhile :; do sleep 0.05; done\n")
    script.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(script))
    sweep = Sweep(name="x", settings={"backbone": "toy"}, grid={"train.lr": (0.1,)}, seeds=(0, 1, 2))
    pieces = pieces_of(registry, sweep, points_of(sweep), Given(tmp_path / "x"))
    logs = [log_of(piece) for piece in pieces]

    def send() -> None:
        while not all(log.is_file() and "ready" in log.read_text() for log in logs[:2]):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=send, daemon=True)
    before = signal.getsignal(signal.SIGTERM)
    sender.start()
    with pytest.raises(StoppedRun) as stopped:
        work(registry, pieces, jobs=2)
    assert stopped.value.exit_code == 143
    assert [log.read_text().split() for log in logs[:2]] == [["ready", "saved"]] * 2
    assert not logs[2].exists()
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_script_for_slurm_runs_the_command_of_its_task(tmp_path):
    fake = tmp_path / "meltr"
    fake.write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    fake.chmod(0o755)
    script = tmp_path / "job.sh"
    script.write_text(slurm_script("x", ['meltr run --set \'losses=["ce", "norm"]\'', "meltr run --resume 'a b'"]))
    said = []
    for task in ("0", "1"):
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": task}
        done = subprocess.run(["bash", str(script)], env=environment, capture_output=True, text=True, check=True)
        said.append(done.stdout)
    assert said == ['run|--set|losses=["ce", "norm"]|', "run|--resume|a b|"]
    assert "#SBATCH --array=0-1\n" in script.read_text()


def test_torchrun_lines_and_states_are_printed(meltr, file, tmp_path):
    words = ("sweep", file, "--runs", tmp_path, "--plugin", TOY)
    lines = meltr(*words, "--print", "torchrun", "--nproc-per-node", 8).stdout.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("torchrun --standalone --nproc-per-node 8 -m meltr run ") for line in lines)
    assert [line.split()[0] for line in meltr(*words, "--dry-run").stdout.splitlines()] == ["new"] * 4
    assert_stopped(meltr(*words, "--trials", 3), "--trials is for a search")


SEARCH = {
    "settings": SHARED,
    "search": {"train.lr": {"low": 1e-4, "high": 0.1, "log": True}, "losses": [["ce", "norm"], ["ce", "denoise"]]},
    "trials": 2,
}


def test_a_search_goes_on_and_chooses_on_validation(meltr, tmp_path):
    pytest.importorskip("optuna")
    path = tmp_path / "best.yaml"
    path.write_text(yaml.safe_dump(SEARCH), encoding="utf-8")
    words = ("sweep", path, "--runs", tmp_path, "--plugin", TOY, "--json")
    first = json.loads(meltr(*words).stdout)
    assert [row["point"] for row in first["points"]] == ["trial-0000", "trial-0001"]
    times = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("results.json")}
    second = json.loads(meltr(*words, "--trials", 3).stdout)
    assert second["points"][:2] == first["points"]
    assert all(file.stat().st_mtime_ns == time for file, time in times.items())
    validation = {row["point"]: row["validation"][0] for row in second["points"]}
    assert second["best"]["value"] == max(validation.values())
    spec = RunFolder(tmp_path / "best" / second["best"]["point"] / "seed-0").read_spec()
    assert spec.train.lr == pytest.approx(second["best"]["settings"]["train.lr"])
    assert list(spec.losses) == second["best"]["settings"]["losses"]
    rates = {RunFolder(tmp_path / "best" / f"trial-000{n}" / "seed-0").read_spec().train.lr for n in range(3)}
    assert len(rates) == 3, "a search that goes on draws other points"


def row(point: str, *validation: float, seeds: int = 2) -> dict[str, object]:
    return {"point": point, "metric": "top1", "validation": [*validation], "test": [], "seeds": seeds}


@pytest.mark.parametrize(
    ("upwards", "rows", "point"),
    [
        (True, [row("a", 1, 4), row("b", 3, 3), row("c", 5, 0)], "b"),
        (False, [row("a", 1, 4), row("b", 3, 3), row("c", 5, 0)], "a"),  # a and c are equal
        (True, [row("a", 1, 4), row("b", 9)], None),  # one seed of b is missing
        (True, [row("a", 1, 4)], None),
    ],
)
def test_the_best_point_is_chosen_by_its_mean_on_validation(registry, tmp_path, monkeypatch, upwards, rows, point):
    sweep = Sweep(name="x", settings={"backbone": "toy"}, grid={"combiner": ("sum", "meltr")})
    pieces = pieces_of(registry, sweep, points_of(sweep), Given(tmp_path))
    task = registry.task("classification")
    monkeypatch.setattr(registry, "task", lambda name: task.model_copy(update={"higher_is_better": upwards}))
    found = best(registry, pieces, rows)
    assert (found and found["point"]) == point


def test_points_of_other_data_are_not_compared(registry, tmp_path):
    sweep = Sweep(name="x", settings={"backbone": "toy"}, grid={"combiner": ("sum", "meltr")})
    first, second = pieces_of(registry, sweep, points_of(sweep), Given(tmp_path))
    rows = [row(piece.point.name, 1.0, seeds=1) for piece in (first, second)]
    other = dataclasses.replace(second, spec=second.spec.model_copy(update={"dataset": "spirals"}))
    assert best(registry, [first, second], rows) is not None
    assert best(registry, [first, other], rows) is None
