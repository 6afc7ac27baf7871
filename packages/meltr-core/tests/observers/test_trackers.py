"""Trackers get the numbers of a run: stand-ins with the interface of each library, and the libraries themselves."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pluggy
import pytest

from command_line import assert_stopped, call
from meltr.context import Data, Evaluation, StepRecord
from meltr.errors import UserError
from meltr.hookspecs import PROJECT, ObserverSpecs
from meltr.observers.tracker import TRACKERS, flat, tracker
from meltr.specs import RunSpec
from places import TOY

NAMES = [name for name in TRACKERS if name != "tensorboard"]
SETTINGS = {"backbone": "b", "task": "classification", "dataset": "d", "losses": ["ce", "rotation"]}


class Stand(ModuleType):
    """A module that records calls as each of the libraries would be called."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.numbers: dict[int, dict[str, float]] = {}

    def _began(self, **how: Any) -> SimpleNamespace:
        self.calls.append(("begin", how))
        return SimpleNamespace(
            id=how.get("id", "new-id"), name=how["name"], log=self.log, finish=self.finish,
        )  # fmt: skip

    def init(self, *, project: str, name: str, config: dict[str, Any], **how: Any) -> SimpleNamespace:
        return self._began(project=project, name=name, config=config, **how)

    def set_experiment(self, name: str) -> None:
        self.calls.append(("experiment", {"name": name}))

    def start_run(self, run_id: str | None = None, run_name: str | None = None) -> SimpleNamespace:
        self.calls.append(("begin", {"run_id": run_id, "name": run_name}))
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id or "new-id"))

    def log_params(self, params: dict[str, Any]) -> None:
        self.calls.append(("params", params))

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.log(metrics, step=step)

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.numbers.setdefault(step, {}).update(metrics)

    def finish(self) -> None:
        self.calls.append(("end", {}))

    end_run = finish


@pytest.fixture(params=NAMES)
def stand(request, monkeypatch) -> Stand:
    module = Stand(request.param)
    monkeypatch.setitem(sys.modules, request.param, module)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: module if name == request.param else find(name))
    return module


def record(step: int) -> StepRecord:
    return StepRecord(
        step=step, epoch=step / 10, losses={"ce": 1.25, "rotation": 0.5}, sensitivities={"ce": 0.9, "rotation": -0.1},
        combined=1.1, lr=1e-3, examples_per_second=1234.0, memory_mb=812.0, eta_seconds=1.0,
        gradient_products={"ce": 1e-3, "rotation": -2e-4}, outer_gradient_norm=0.1,
    )  # fmt: skip


def run_through(observer: Any, run_dir: Path | None, steps: tuple[int, ...] = (10, 20)) -> None:
    """Drive the hooks as the engine does."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(ObserverSpecs)
    manager.register(observer)
    manager.check_pending()
    context = SimpleNamespace(run_dir=run_dir, spec=RunSpec(**SETTINGS))
    hook = manager.hook
    hook.on_run_start(context=context, data=Data(train=None, validation=None))
    for step in steps:
        hook.on_step_end(context=context, record=record(step))
    hook.on_evaluation(context=context, split="validation", step=20, evaluation=Evaluation({"top1": 79.25}, 5000))
    hook.on_run_end(context=context, results={})
    observer.close()


def test_a_tracker_gets_the_numbers_and_the_settings(stand, tmp_path):
    run_through(tracker(stand.__name__), tmp_path / "demo")
    assert set(stand.numbers) == {10, 20}
    assert stand.numbers[20]["loss/rotation"] == 0.5
    assert stand.numbers[20]["sensitivity/rotation"] == -0.1
    assert stand.numbers[20]["gradient_product/ce"] == 1e-3
    assert stand.numbers[20]["validation/top1"] == 79.25
    names = [name for name, _ in stand.calls]
    assert names.count("begin") == names.count("end") == 1
    (begun,) = [how for name, how in stand.calls if name == "begin"]
    assert begun["name"] == "demo"
    if stand.__name__ == "mlflow":
        settings = next(how for name, how in stand.calls if name == "params")
        assert (settings["backbone"], settings["train.epochs"]) == ("b", str(RunSpec(**SETTINGS).train.epochs))
        assert ("experiment", {"name": "meltr"}) in stand.calls
    else:
        assert begun["config"]["backbone"] == "b"
        assert begun["project"] == "meltr"


def test_a_resumed_run_continues_the_run_of_the_tracker(stand, tmp_path):
    folder = tmp_path / "seed-3"
    run_through(tracker(stand.__name__), folder)
    stored = json.loads((folder / "trackers.json").read_text())
    run_through(tracker(stand.__name__), folder, steps=(30,))
    first, second = [how for name, how in stand.calls if name == "begin"]
    identity = {"wandb": "id", "mlflow": "run_id", "trackio": "name"}[stand.__name__]
    assert first["name"] == f"{tmp_path.name}-seed-3"
    assert second[identity] == stored[stand.__name__]
    assert [name for name, _ in stand.calls].count("params") <= 1
    assert first.get("resume") != "must"
    if stand.__name__ != "mlflow":
        assert second["resume"] in ("must", "allow")


def test_the_project_is_that_of_the_environment(stand, tmp_path, monkeypatch):
    observer = tracker(stand.__name__)
    monkeypatch.setenv(observer.PROJECT_VARIABLE, "mine")
    run_through(observer, tmp_path)
    assert any(how.get("project", how.get("name")) == "mine" for _, how in stand.calls)


def test_a_run_without_a_folder_is_not_tracked(stand):
    run_through(tracker(stand.__name__), None)
    assert not stand.calls
    assert not stand.numbers


def test_the_command_sends_a_run_to_several_trackers(stand, tmp_path):
    pytest.importorskip("tensorboard")
    words = ["--plugin", TOY, "--backbone", "toy", "--task", "classification", "--dataset", "rings", "--epochs", 1]
    words += ["--output-dir", tmp_path, "--name", "run", "--tracker", stand.__name__, "--tracker", "tensorboard"]
    result = call("run", *words, "--device", "cpu", "--set", "train.log_every=1")
    assert result.exit_code == 0, result.output
    logged = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    steps = {each["step"]: each for each in logged if each["kind"] == "train"}
    assert steps.keys() <= stand.numbers.keys()
    for step, line in steps.items():
        for name, value in line["losses"].items():
            assert stand.numbers[step][f"loss/{name}"] == pytest.approx(value)
    assert (tmp_path / "run/tensorboard").is_dir()


def test_a_wrong_tracker_is_an_error(monkeypatch, tmp_path):
    words = ["--plugin", TOY, "--backbone", "toy", "--task", "classification", "--dataset", "rings"]
    result = call("run", *words, "--output-dir", tmp_path, "--tracker", "wandbb")
    assert_stopped(result, "there is no tracker 'wandbb'", "Did you mean 'wandb'?")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in NAMES:
        with pytest.raises(UserError, match=rf"'{name}' is not installed\n.*meltr-core\[{name}\]"):
            tracker(name)


def test_flat_settings():
    assert flat({"a": 1, "b": {"c": {"d": None}, "e": [1]}}) == {"a": 1, "b.c.d": None, "b.e": [1]}


@pytest.mark.slow
def test_wandb_itself(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run_through(tracker("wandb"), tmp_path)
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    identity = json.loads((tmp_path / "trackers.json").read_text())["wandb"]
    assert (folder / f"run-{identity}.wandb").stat().st_size > 0


@pytest.mark.slow
def test_mlflow_itself(tmp_path, monkeypatch):
    """Twice, as a resumed run; the second adds to the first."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/ml.db")
    monkeypatch.chdir(tmp_path)
    run_through(tracker("mlflow"), tmp_path)
    run_through(tracker("mlflow"), tmp_path, steps=(30,))
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/ml.db")
    identity = json.loads((tmp_path / "trackers.json").read_text())["mlflow"]
    assert [each.step for each in client.get_metric_history(identity, "loss/ce")] == [10, 20, 30]
    assert client.get_run(identity).data.params["backbone"] == "b"


@pytest.mark.slow
def test_trackio_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "store"))
    pytest.importorskip("trackio")
    run_through(tracker("trackio"), tmp_path / "demo")
    run_through(tracker("trackio"), tmp_path / "demo", steps=(30,))
    assert json.loads((tmp_path / "demo/trackers.json").read_text())["trackio"] == "demo"
    assert list((tmp_path / "store").glob("meltr*"))
