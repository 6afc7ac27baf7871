"""``meltr run`` and ``meltr evaluate``: folders, seeds, resuming. The engine is a stand-in that records its calls."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest
import yaml

from command_line import assert_stopped, call, command_line
from meltr import UserError
from meltr.settings import dump_yaml

TOY = """
from pydantic import Field
from meltr import BackboneInfo, BackboneTask, DatasetInfo, PresetInfo, TaskInfo, hookimpl
from meltr.specs import Info

class Options(Info):
    depth: int = Field(2, ge=1)

@hookimpl
def register_tasks():
    return [TaskInfo(name="sort", summary="", metrics=("score",))]

@hookimpl
def register_datasets():
    return [DatasetInfo(name="shapes", summary="", tasks=("sort",))]

@hookimpl
def register_backbones():
    task = BackboneTask(task="sort", losses=("main", "side"), datasets=("shapes",))
    preset = PresetInfo(name="quick", summary="", settings={"train.lr": 0.25})
    return [BackboneInfo(name="toy", summary="", adapter="nowhere:Adapter", options=f"{__name__}:Options",
                         tasks=(task,), presets=(preset,), default_presets={"shapes": "quick"})]
"""

CHOICE = ["--backbone", "toy", "--task", "sort", "--dataset", "shapes"]


class Engine(types.ModuleType):
    """Stands for `meltr.engine.run`: writes a run.yaml and a results.json with the seed as its score."""

    def __init__(self) -> None:
        super().__init__("meltr.engine.run")
        self.calls: list[dict] = []
        self.error: BaseException | None = None

    def execute(self, spec, **arguments):
        self.calls.append({"spec": spec, **arguments})
        print("noise of a plugin")
        folder = arguments["run_dir"]
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "run.yaml").write_text(dump_yaml(spec))
        if self.error is not None:
            raise self.error
        metrics = {"score": 10.0 + spec.seed, "loss": float("nan")}
        results = {
            "metric": "score",
            "higher_is_better": True,
            "seed": spec.seed,
            "test": {"metrics": metrics, "count": 4},
            "validation": {"metrics": {"score": 5.0}, "count": 4, "step": 1},
        }
        if folder is not None:
            (folder / "results.json").write_text(json.dumps(results))
        return results

    def evaluate_run(self, run_dir, **arguments):
        self.calls.append({"run_dir": run_dir, **arguments})
        return {"metrics": {"score": 0.5}, "count": 4, "split": arguments["split"], "checkpoint": "step-000001"}


@pytest.fixture
def engine(monkeypatch) -> Engine:
    engine = Engine()
    monkeypatch.setitem(sys.modules, "meltr.engine.run", engine)
    return engine


@pytest.fixture
def meltr(tmp_path, monkeypatch, engine, no_installed_plugins):
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    Path("toy.py").write_text(TOY)
    return command_line(Path("toy.py"))


def test_a_run_goes_into_a_folder_named_after_it(meltr, engine):
    result = meltr("run", *CHOICE, "--epochs", "3", "--set", "depth=4", "--download", "--device", "cpu")
    assert result.exit_code == 0, result.output
    (call,) = engine.calls
    assert call["run_dir"] == Path("runs/toy-sort-shapes-meltr")
    assert (call["resume"], call["fast_dev_run"]) == (False, False)
    spec = call["spec"]
    assert (spec.train.epochs, spec.train.lr, spec.options, spec.data.download) == (3, 0.25, {"depth": 4}, True)
    assert len(call["observers"]) == 1
    assert result.stdout == "runs/toy-sort-shapes-meltr: test score = 10, validation score = 5\n"
    assert "noise of a plugin" in result.stderr


def test_a_taken_default_name_gets_a_number_and_a_taken_name_is_refused(meltr, engine):
    for _ in range(3):
        assert meltr("run", *CHOICE).exit_code == 0
    assert [call["run_dir"].name for call in engine.calls] == [
        "toy-sort-shapes-meltr",
        "toy-sort-shapes-meltr-2",
        "toy-sort-shapes-meltr-3",
    ]
    assert meltr("run", *CHOICE, "--name", "mine").exit_code == 0
    result = meltr("run", *CHOICE, "--name", "mine")
    assert_stopped(result, "there is already a run in runs/mine", "meltr run --resume runs/mine")
    assert len(engine.calls) == 4
    assert meltr("run", *CHOICE, "--name", "a/b").exit_code == 2


def test_overwrite_deletes_a_run_but_nothing_else(meltr, engine):
    meltr("run", *CHOICE, "--name", "mine")
    Path("runs/mine/old.txt").write_text("old")
    assert meltr("run", *CHOICE, "--name", "mine", "--overwrite").exit_code == 0
    assert not Path("runs/mine/old.txt").exists()
    Path("runs/photos").mkdir()
    Path("runs/photos/cat.jpg").write_text("cat")
    result = meltr("run", *CHOICE, "--name", "photos", "--overwrite")
    assert_stopped(result, "is not a run folder")
    assert Path("runs/photos/cat.jpg").exists()


def test_overwrite_gives_the_earlier_run_back_if_the_new_one_cannot_begin(meltr, engine):
    meltr("run", *CHOICE, "--name", "mine")
    Path("runs/mine/old.txt").write_text("old")
    engine.error = UserError("no data")
    assert meltr("run", *CHOICE, "--name", "mine", "--overwrite").exit_code == 2
    assert Path("runs/mine/old.txt").read_text() == "old"
    assert Path("runs/mine/results.json").exists()
    assert [path.name for path in Path("runs").iterdir()] == ["mine"]


def test_json_is_all_there_is_on_standard_output(meltr):
    result = meltr("run", *CHOICE, "--json")
    content = json.loads(result.stdout)
    assert content["test"]["metrics"] == {"score": 10.0, "loss": "NaN"}


def test_dry_run_shows_everything_and_writes_nothing(meltr, engine):
    result = meltr("run", *CHOICE, "--dry-run", "--lr", "0.5", "--seed", "3,4", "--name", "mine")
    assert result.exit_code == 0
    content = yaml.safe_load(result.stdout)
    assert content["train"]["lr"] == 0.5
    assert "# seed 4: would be written to runs/mine/seed-4" in result.stdout
    plan = json.loads(meltr("run", *CHOICE, "--dry-run", "--json").stdout)
    assert plan["run_dir"] == "runs/toy-sort-shapes-meltr"
    assert plan["seeds"] == [0]
    assert not Path("runs").exists()
    assert engine.calls == []


def test_fast_dev_run_keeps_nothing(meltr, engine):
    result = meltr("run", *CHOICE, "--fast-dev-run")
    assert result.exit_code == 0
    assert engine.calls[0]["run_dir"] is None
    assert engine.calls[0]["fast_dev_run"] is True
    assert result.stdout == "test score = 10, validation score = 5\n"
    assert not Path("runs").exists()


def test_several_seeds_are_summed_up(meltr, engine):
    result = meltr("run", *CHOICE, "--seed", "0,1,5", "--name", "mine")
    assert result.exit_code == 0, result.output
    assert [call["run_dir"] for call in engine.calls] == [Path(f"runs/mine/seed-{seed}") for seed in (0, 1, 5)]
    assert [call["spec"].seed for call in engine.calls] == [0, 1, 5]
    results = json.loads(Path("runs/mine/results.json").read_text())
    assert results["seeds"] == [0, 1, 5]
    assert (results["metric"], results["higher_is_better"]) == ("score", True)
    assert results["test"]["score"] == {"mean": 12.0, "std": pytest.approx(7**0.5), "n": 3}
    assert results["validation"]["score"] == {"mean": 5.0, "std": 0.0, "n": 3}
    assert results["test"]["loss"] == {"mean": "NaN", "std": "NaN", "n": 3}
    assert [run["seed"] for run in results["runs"]] == [0, 1, 5]
    assert "12 ± 2.6" in result.stdout


@pytest.mark.parametrize("seeds", ["a", "1,,2", "1,1", "-1", "0.5"])
def test_seeds_must_be_different_numbers(meltr, seeds):
    assert_stopped(meltr("run", *CHOICE, f"--seed={seeds}"), "--seed 0,1,2")


def interrupted(meltr, engine, *words: str):
    engine.error = KeyboardInterrupt()
    result = meltr("run", *CHOICE, "--name", "mine", *words)
    engine.error = None
    assert result.exit_code == 130
    assert "continue with: meltr run --resume runs/mine" in result.stderr
    return engine.calls[-1]["spec"]


def test_resume_goes_on_with_the_same_settings(meltr, engine):
    spec = interrupted(meltr, engine, "--set", "depth=5", "--seed", "7")
    result = meltr("run", "--resume", "runs/mine")
    assert result.exit_code == 0, result.output
    assert engine.calls[-1]["resume"] is True
    assert engine.calls[-1]["spec"] == spec
    assert engine.calls[-1]["run_dir"] == Path("runs/mine")


def test_resume_refuses_other_settings_but_not_another_place(meltr, engine):
    spec = interrupted(meltr, engine)
    result = meltr("run", "--resume", "runs/mine", "--lr", "9", "--set", "depth=5", "--combiner", "sum")
    assert result.exit_code == 2
    for name in ("train.lr", "options.depth", "combiner"):
        assert name in result.stderr
    assert "train.epochs" not in result.stderr
    for words in (["--seed", "1"], ["--name", "x"], ["--overwrite"], ["--config", "x.yaml"], ["--preset", "none"]):
        assert meltr("run", "--resume", "runs/mine", *words).exit_code == 2, words
    assert len(engine.calls) == 1
    assert meltr("run", "--resume", "runs/mine", "--lr", "0.25", "--device", "cpu", "--data-root", ".").exit_code == 0
    moved = engine.calls[-1]["spec"]
    assert (moved.device, moved.data_root) == ("cpu", Path.cwd())
    assert moved.model_copy(update={"device": "auto", "data_root": None}) == spec


def test_resuming_a_finished_run_shows_its_result(meltr, engine):
    meltr("run", *CHOICE, "--name", "mine")
    result = meltr("run", "--resume", "runs/mine")
    assert result.exit_code == 0
    assert "already finished" in result.stderr
    assert "test score = 10" in result.stdout
    assert len(engine.calls) == 1


def test_resuming_several_seeds_does_the_unfinished_ones(meltr, engine):
    real, engine_execute = engine.execute, []

    def second_fails(spec, **arguments):
        engine_execute.append(spec.seed)
        engine.error = KeyboardInterrupt() if spec.seed == 1 else None
        return real(spec, **arguments)

    engine.execute = second_fails
    assert meltr("run", *CHOICE, "--seed", "0,1,2", "--name", "mine").exit_code == 130
    assert engine_execute == [0, 1]
    assert not Path("runs/mine/results.json").exists()
    engine.execute, engine.error = real, None
    result = meltr("run", "--resume", "runs/mine")
    assert result.exit_code == 0, result.output
    again = engine.calls[2:]
    assert [(call["spec"].seed, call["resume"]) for call in again] == [(1, True), (2, False)]
    assert json.loads(Path("runs/mine/results.json").read_text())["test"]["score"]["n"] == 3
    assert meltr("run", "--resume", "runs/mine", "--seed", "0,1,3").exit_code == 2


def test_resume_of_something_else_suggests_a_run(meltr):
    meltr("run", *CHOICE, "--name", "mine")
    assert_stopped(
        meltr("run", "--resume", "runs/mime"),
        "runs/mime is not a run folder: it does not exist",
        "Did you mean 'mine'?",
    )


def test_what_is_missing_or_wrong_is_said_without_a_traceback(meltr, engine):
    assert_stopped(meltr("run", "--task", "sort"), "error: --backbone is missing\n  Valid choices: toy.")
    result = meltr("run", *CHOICE, "--set", "epoch=3")
    assert "Did you mean 'train.epochs'" in result.stderr
    assert "Traceback" not in result.stderr
    assert meltr("run", *CHOICE, "--plugin", "absent.py").exit_code == 2
    assert engine.calls == []


def test_a_plugin_file_is_remembered_by_its_full_path(meltr, engine, tmp_path):
    result = call("run", *CHOICE, "--plugin", "toy.py")
    assert result.exit_code == 0, result.output
    assert engine.calls[0]["spec"].plugins == (tmp_path / "toy.py",)
    assert call("evaluate", "--trust", "runs/toy-sort-shapes-meltr").exit_code == 0
    assert "toy" in engine.calls[1]["registry"].backbones
    assert call("run", "--config", "runs/toy-sort-shapes-meltr/run.yaml", "--dry-run").exit_code == 0


def test_several_processes_need_what_torchrun_sets(meltr, engine, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = meltr("run", *CHOICE)
    assert_stopped(
        result,
        "WORLD_SIZE is 2, but RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set",
        "torchrun --nproc-per-node",
    )
    assert not engine.calls
    assert not Path("runs").exists()


def test_evaluate_passes_what_was_asked(meltr, engine):
    meltr("run", *CHOICE, "--name", "mine")
    result = meltr(
        "evaluate", "--trust", "runs/mine", "--split", "validation", "--checkpoint", "last", "--device", "cpu"
    )
    assert result.exit_code == 0, result.output
    call = engine.calls[-1]
    assert call["run_dir"] == Path("runs/mine")
    assert (call["split"], call["checkpoint"], call["device"], call["data_root"]) == ("validation", "last", "cpu", None)
    assert "runs/mine: validation split, checkpoint step-000001, 4 examples" in result.stdout
    content = json.loads(meltr("evaluate", "--trust", "runs/mine", "--json").stdout)
    assert content["metrics"] == {"score": 0.5}


def test_evaluate_takes_all_seeds_together(meltr, engine):
    meltr("run", *CHOICE, "--name", "mine", "--seed", "0,1")
    content = json.loads(meltr("evaluate", "--trust", "runs/mine", "--json").stdout)
    assert content["metrics"]["score"] == {"mean": 0.5, "std": 0.0, "n": 2}
    assert [run["run_dir"] for run in content["runs"]] == ["runs/mine/seed-0", "runs/mine/seed-1"]
    assert "mean ± std of 2 seeds" in meltr("evaluate", "--trust", "runs/mine").stdout


def test_evaluate_refuses_what_is_no_run(meltr):
    assert "runs is not a run folder: it does not exist" in meltr("evaluate", "--trust", "runs").stderr
    meltr("run", *CHOICE, "--name", "mine")
    assert_stopped(meltr("evaluate", "--trust", "runs/mine", "--split", "tets"), "Did you mean 'test'?")
