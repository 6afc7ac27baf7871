"""Asking a trained run: without its data set, with the weights of its checkpoint, and every way in which it cannot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from asking_backbone import point
from meltr.context import PredictRequest
from meltr.engine.predicting import load_run
from meltr.engine.run import execute
from meltr.errors import PluginError, UserError
from meltr.plugins import discover
from meltr.settings import resolve
from places import ASKING, TOY
from toy_backbone import Net

SETTINGS = {"train.epochs": 2, "train.batch_size": 32, "train.lr": 0.01, "device": "cpu", "combiner": "sum"}


def train(folder: Path, plugin: Path, backbone: str, **flags: object) -> Path:
    registry = discover([plugin])
    flags = {**SETTINGS, **flags}
    choice = {"backbone": backbone, "task": "classification", "dataset": "rings"}
    execute(resolve(registry, **choice, flags=flags, plugins=[plugin]), run_dir=folder, registry=registry)
    return folder


STRANGE = """
import meltr
from asking_backbone import Asking, register_datasets

@meltr.hookimpl
def register_backbones():
    task = meltr.BackboneTask(task="classification", losses=("ce", "denoise", "norm"), datasets=("rings",))
    return [meltr.BackboneInfo(name="asking", summary="", adapter=f"{__name__}:Strange", tasks=(task,))]

class Strange(Asking):
    @meltr.hookimpl
    def build_data(self, context):
        raise AssertionError("the data set was read")

    @meltr.hookimpl
    def build_model(self, context, data):
        CODE
        return super().build_model()

    @meltr.hookimpl
    def predict(self, model, request, data, context):
        return RESULT
"""


def strange(tmp_path: Path, *, code: str = "pass", result: str = "None"):
    """Return the plugins with a backbone that fails when its data set is read, runs `code` and returns `result`."""
    file = tmp_path / f"strange_{abs(hash((code, result)))}.py"
    file.write_text(STRANGE.replace("CODE", code).replace("RESULT", result))
    return discover([file])


@pytest.fixture(scope="module")
def asking():
    return discover([ASKING])


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    return train(tmp_path_factory.mktemp("runs") / "asking", ASKING, "asking")


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy, to be changed."""
    return Path(shutil.copytree(trained, tmp_path / "run", symlinks=True))


@pytest.fixture
def pictures(tmp_path) -> tuple[Path, ...]:
    colours = {"a": (128, 190), "b": (255, 128), "c": (70, 120), "d": (10, 100)}
    for name, (red, green) in colours.items():
        Image.new("RGB", (4, 3), (red, green, 7)).save(tmp_path / f"{name}.png")
    return tuple(tmp_path / f"{name}.png" for name in colours)


def probabilities(run: Path, paths: tuple[Path, ...]) -> torch.Tensor:
    """Compute (N, 2) from the checkpoint's file and the toy's network alone."""
    net = Net()
    net.load_state_dict(load_file(run / "checkpoints" / "best" / "backbone.safetensors"))
    net.eval()
    with torch.no_grad():
        return net.classify(net(torch.stack([point(path) for path in paths]))).softmax(1)


def test_the_answer_is_that_of_the_trained_network(trained, asking, pictures):
    prediction = load_run(trained, registry=asking).predict(PredictRequest(pictures))
    expected = probabilities(trained, pictures)
    assert len(prediction.rows) == 2 * len(pictures)
    for index, path in enumerate(pictures):
        best, other = prediction.rows[2 * index : 2 * index + 2]
        assert best["image"] == other["image"] == path
        found = {row["ring"]: row["probability"] for row in (best, other)}
        assert [found["inner"], found["outer"]] == pytest.approx(expected[index].tolist(), rel=1e-5)
        assert best["probability"] >= other["probability"]
    assert len({row["ring"] for row in prediction.rows[::2]}) == 2, "the pictures should lie on both rings"


def test_another_checkpoint_gives_another_answer(trained, asking, pictures, tmp_path):
    run = train(tmp_path / "kept", ASKING, "asking", **{"train.keep_checkpoints": 9})
    first = min((run / "checkpoints").glob("step-*")).name
    rows = [
        load_run(run, registry=asking, checkpoint=each).predict(PredictRequest(pictures)) for each in (first, "last")
    ]
    assert rows[0] != rows[1]
    assert load_run(run, registry=asking, checkpoint=first).checkpoint == first
    with pytest.raises(UserError, match="no checkpoint 'step-9'"):
        load_run(run, registry=asking, checkpoint="step-9")


def test_the_data_set_is_never_read(run, asking, pictures, tmp_path):
    (run / "results.json").unlink()
    guarded = load_run(run, registry=strange(tmp_path, result="Asking.predict(self, model, request, data, context)"))
    request = PredictRequest(pictures)
    assert guarded.predict(request) == load_run(run, registry=asking).predict(request)


def test_nothing_in_the_run_folder_changes(run, asking, pictures):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    load_run(run, registry=asking).predict(PredictRequest(pictures))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_run_writes_the_facts_of_its_data_when_it_starts(trained):
    facts = json.loads((trained / "data.json").read_text())
    assert facts == {"meta": {"rings": ["inner", "outer"]}, "left_out": {}}


def test_a_run_of_an_earlier_version_is_known_by_its_results(run, asking, pictures):
    expected = load_run(run, registry=asking).predict(PredictRequest(pictures))
    (run / "data.json").unlink()
    assert load_run(run, registry=asking).predict(PredictRequest(pictures)) == expected
    (run / "results.json").unlink()
    with pytest.raises(UserError, match="does not describe the data") as error:
        load_run(run, registry=asking)
    assert f"meltr run --resume {run}" in str(error.value)


@pytest.mark.parametrize(("text", "message"), [("{", "not valid JSON"), ("[1]", "holds a list")])
def test_broken_facts_are_named(run, asking, text, message):
    (run / "data.json").write_text(text)
    with pytest.raises(UserError, match=message):
        load_run(run, registry=asking)


def test_a_backbone_that_cannot_be_asked(tmp_path):
    run = train(tmp_path / "silent", TOY, "toy")
    with pytest.raises(UserError, match="'toy' cannot predict") as error:
        load_run(run, registry=discover([TOY]))
    assert f"meltr evaluate {run}" in str(error.value)


def test_no_run(tmp_path, asking):
    with pytest.raises(UserError, match=r"no run\.yaml"):
        load_run(tmp_path, registry=asking)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("[{'answer': 1}]", "returned list, expected meltr.Prediction"),
        ("meltr.Prediction(())", "returned no rows"),
        ("meltr.Prediction(('red',))", "a row is a str"),
        ("meltr.Prediction(({'answer': {1, 2}},))", "cannot be written as JSON"),
    ],
)
def test_what_the_hook_returns_is_checked(trained, tmp_path, pictures, result, message):
    with pytest.raises(PluginError, match=message) as error:
        load_run(trained, registry=strange(tmp_path, result=result)).predict(PredictRequest(pictures))
    assert "hook predict" in str(error.value)


def test_the_hook_sees_eval_mode_no_gradients_the_precision_and_the_folder(trained, tmp_path, pictures):
    facts = "model.training, torch.is_grad_enabled(), torch.is_autocast_enabled('cpu'), str(context.run_dir)"
    result = f"meltr.Prediction(({{'facts': [{facts}]}},)) if (torch := __import__('torch')) else None"
    registry = strange(tmp_path, result=result)
    copy = Path(shutil.copytree(trained, tmp_path / "half", symlinks=True))
    text = (copy / "run.yaml").read_text()
    assert "precision: fp32" in text
    (copy / "run.yaml").write_text(text.replace("precision: fp32", "precision: bf16"))
    for run, half in ((trained, False), (copy, True)):
        (row,) = load_run(run, registry=registry).predict(PredictRequest(pictures)).rows
        assert row["facts"] == [False, False, half, str(run)]


def test_a_backbone_that_wants_training_batches_is_told_there_are_none(trained, tmp_path):
    registry = strange(tmp_path, code="assert len(data.train) == data.train.size == 0; next(data.train.batches(0))")
    with pytest.raises(PluginError, match="without its data set"):
        load_run(trained, registry=registry)


def test_losses_that_the_data_could_not_serve_are_not_in_the_model(run, tmp_path):
    facts = json.loads((run / "data.json").read_text())
    (run / "data.json").write_text(json.dumps({**facts, "left_out": {"denoise": "no noise here"}}))
    registry = strange(tmp_path, code="assert context.losses == context.spec.losses == ('ce', 'norm')")
    assert load_run(run, registry=registry).context.losses == ("ce", "norm")


def test_random_numbers_of_a_prediction_are_the_same_every_time(trained, tmp_path, pictures):
    draws = "[float(__import__('torch').rand(())), __import__('random').random()]"
    trained_run = load_run(trained, registry=strange(tmp_path, result=f"meltr.Prediction(({{'drawn': {draws}}},))"))
    first, second = (trained_run.predict(PredictRequest(pictures)) for _ in range(2))
    assert first == second
