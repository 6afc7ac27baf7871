"""A run is evaluated later: its adapter finds the run folder, loads no pretrained weights, and keeps the losses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from meltr.engine.run import evaluate_run, execute
from meltr.errors import UserError
from meltr.plugins import Registry, discover
from meltr.settings import resolve

PLUGIN = '''
import json

import meltr
from toy_backbone import Toy, register_datasets


@meltr.hookimpl
def register_backbones():
    task = meltr.BackboneTask(task="classification", losses=("ce", "denoise", "norm"), datasets=("rings",))
    return [meltr.BackboneInfo(name="late", summary="A toy.", adapter=f"{__name__}:Late", tasks=(task,))]


class Late(Toy):
    """Leaves the loss norm out unless a file says that it can be computed; writes down what it is told."""

    @meltr.hookimpl
    def build_data(self, context):
        data = super().build_data(context)
        left_out = {} if (context.run_dir.parent / "norm").exists() else {"norm": "it is not there"}
        return meltr.Data(data.train, data.validation, data.test, data.held_out, data.meta, left_out)

    @meltr.hookimpl
    def build_model(self, context, data):
        told = [str(context.run_dir), context.weights_follow, list(context.losses), dict(data.left_out)]
        (context.run_dir.parent / "told.json").write_text(json.dumps(told))
        return super().build_model()
'''


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    file = tmp_path / f"{tmp_path.name}_late.py".replace("-", "_")
    file.write_text(PLUGIN)
    return discover([file])


def train(registry: Registry, tmp_path: Path) -> dict[str, object]:
    flags = {"train.max_steps": 2, "train.batch_size": 32, "combiner": "sum", "device": "cpu"}
    spec = resolve(registry, backbone="late", task="classification", dataset="rings", flags=flags)
    return execute(spec, run_dir=tmp_path / "run", registry=registry)


def told(tmp_path: Path) -> list[object]:
    return json.loads((tmp_path / "told.json").read_text())


@pytest.mark.parametrize("there", [False, True])
def test_the_model_is_built_as_for_training(registry: Registry, tmp_path: Path, there: bool) -> None:
    """Whether the loss norm can be computed changes between training and evaluation."""
    norm = tmp_path / "norm"
    if there:
        norm.touch()
    results = train(registry, tmp_path)
    losses = ["ce", "denoise", "norm"] if there else ["ce", "denoise"]
    left_out = {} if there else {"norm": "it is not there"}
    assert told(tmp_path) == [str(tmp_path / "run"), False, losses, left_out]
    norm.unlink() if there else norm.touch()
    again = evaluate_run(tmp_path / "run", registry=registry)
    assert again["metrics"] == results["test"]["metrics"]
    assert told(tmp_path) == [str(tmp_path / "run"), True, losses, left_out]


def test_nothing_is_logged(registry: Registry, tmp_path: Path) -> None:
    train(registry, tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    evaluate_run(tmp_path / "run", registry=registry)
    after = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    assert set(after) - set(before) == {tmp_path / "run" / "evaluation-test.json"}
    assert all(after[path] == content for path, content in before.items())


def test_a_run_that_did_not_note_its_data(registry: Registry, tmp_path: Path) -> None:
    results = train(registry, tmp_path)
    (tmp_path / "run" / "data.json").unlink()
    assert evaluate_run(tmp_path / "run", registry=registry)["metrics"] == results["test"]["metrics"]
    assert told(tmp_path)[3] == {"norm": "it is not there"}


def test_a_run_of_another_user(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folder cannot be written, and its checkpoints perhaps not be read; tests may run as root, who may do both."""
    results, said = train(registry, tmp_path), []

    def denied(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr("meltr.engine.run.write_json", denied)
        found = evaluate_run(tmp_path / "run", registry=registry, say=said.append)
        with pytest.raises(PermissionError):
            evaluate_run(tmp_path / "run", registry=registry)
    assert found["metrics"] == results["test"]["metrics"]
    assert said == [f"the results are not stored: {tmp_path / 'run'} cannot be written (Permission denied)"]
    monkeypatch.setattr("os.listdir", denied)
    with pytest.raises(UserError, match=r"checkpoints cannot be read: Permission denied"):
        evaluate_run(tmp_path / "run", registry=registry)
