"""Classes of image files: the probabilities of the trained network on the pixels that were written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from meltr.context import PredictRequest
from meltr.engine.predicting import TrainedRun, load_run
from meltr.engine.run import execute
from meltr.errors import UserError
from meltr.plugins import discover
from meltr.settings import resolve
from meltr_vision.data.digits import read_digits
from meltr_vision.model.classifier import Classifier
from meltr_vision.model.resnet import CifarTrunk

TINY = {"model": "resnet20", "losses": "classification,mixup", "batch_size": 20, "combiner": "sum", "device": "cpu"}


def train(folder: Path, dataset: str, **settings: object) -> Path:
    registry = discover()
    choice = {"backbone": "vision", "task": "classification", "dataset": dataset, "preset": "none"}
    sets = [f"{key}={value}" for key, value in {**TINY, **settings}.items()]
    execute(resolve(registry, **choice, sets=sets), run_dir=folder, registry=registry)
    return folder


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return train(tmp_path_factory.mktemp("runs") / "digits", "digits", epochs=3, train_limit=200, eval_limit=100)


@pytest.fixture
def digits(digits_run: Path) -> TrainedRun:
    return load_run(digits_run, registry=discover())


@pytest.fixture
def pngs(tmp_path: Path) -> tuple[Path, ...]:
    """Twelve test digits as grey PNGs of 8 x 8 pixels."""
    paths = []
    for number, image in enumerate(read_digits().test.images[:12]):
        paths.append(tmp_path / f"digit-{number}.png")
        Image.fromarray(image[0]).save(paths[-1])
    return tuple(paths)


def network(run: Path, classes: int) -> Classifier:
    """Put the checkpoint's file into a network made by hand."""
    model = Classifier(CifarTrunk(3, channels=1), CifarTrunk.features, classes)
    model.load_state_dict(load_file(run / "checkpoints" / "best" / "backbone.safetensors"))
    return model.eval()


def test_probabilities_are_those_of_the_network(digits: TrainedRun, digits_run: Path, pngs: tuple[Path, ...]) -> None:
    rows = digits.predict(PredictRequest(pngs, top=10)).rows
    pixels = torch.from_numpy(read_digits().test.images[:12]).double()
    with torch.no_grad():
        logits = network(digits_run, 10)(((pixels / 255 - 0.3053) / 0.3761).float())
    expected: Tensor = logits.softmax(1)
    assert len(rows) == 120
    for index, path in enumerate(pngs):
        mine = rows[10 * index : 10 * index + 10]
        assert {row["image"] for row in mine} == {path}
        values = [row["probability"] for row in mine]
        assert values == sorted(values, reverse=True)
        assert sum(values) == pytest.approx(1, abs=1e-5)
        found = [value for _, value in sorted((row["label"], row["probability"]) for row in mine)]
        assert found == pytest.approx(expected[index].tolist(), abs=1e-5)


def test_batches_do_not_change_the_answer(digits: TrainedRun, pngs: tuple[Path, ...]) -> None:
    whole = digits.predict(PredictRequest(pngs, top=2)).rows
    assert len(whole) == 24
    alone = [row for path in pngs for row in digits.predict(PredictRequest((path,), top=2)).rows]
    for one, other in zip(whole, alone, strict=True):
        assert (one["image"], one["label"]) == (other["image"], other["label"])
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-6)


def test_images_of_a_folder_get_the_classes_that_evaluation_gave_them(tmp_path: Path) -> None:
    """Photographs of any shape go the way of the data set's own files: same resizing, same normalisation."""
    rng = np.random.default_rng(0)
    root = tmp_path / "photos"
    for split, count in (("train", 12), ("test", 8)):
        for number in range(count):
            file = root / split / ("dark", "light")[number % 2] / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            shape = (int(rng.integers(30, 60)), int(rng.integers(30, 60)), 3)
            Image.fromarray(rng.integers(*((0, 140), (115, 255))[number % 2], shape).astype(np.uint8)).save(file)
    flags = {"data_root": root, "image_size": 24, "epochs": 4, "lr": 0.01, "save_predictions": "true"}
    run = train(tmp_path / "run", "image_folder", **flags, batch_size=5)
    evaluated = [json.loads(line) for line in (run / "predictions" / "test.jsonl").read_text().splitlines()]
    files = tuple(root / "test" / row["file"].removeprefix("test/") for row in evaluated)
    assert all(file.is_file() for file in files)
    rows = load_run(run, registry=discover()).predict(PredictRequest(files, top=1)).rows
    assert [row["label"] for row in rows] == [("dark", "light")[row["predicted"]] for row in evaluated]
    assert len({row["label"] for row in rows}) == 2


def test_pretrained_weights_may_be_gone(tmp_path: Path, digits_run: Path, pngs: tuple[Path, ...]) -> None:
    weights = tmp_path / "start.safetensors"
    weights.write_bytes((digits_run / "checkpoints" / "best" / "backbone.safetensors").read_bytes())
    run = train(tmp_path / "tuned", "digits", max_steps=1, train_limit=60, eval_limit=20, weights_file=weights)
    weights.unlink()
    assert load_run(run, registry=discover()).predict(PredictRequest(pngs[:1], top=1)).rows


def test_a_run_of_an_earlier_version_did_not_note_the_stored_size(digits: TrainedRun, pngs: tuple[Path, ...]) -> None:
    facts = dict(digits.data.meta)
    assert facts.pop("stored_size") == 8
    earlier = replace(digits, data=replace(digits.data, meta=facts))
    assert earlier.predict(PredictRequest(pngs)) == digits.predict(PredictRequest(pngs))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (PredictRequest(question="What is it?"), "cannot use --question"),
        (PredictRequest(search="a cat"), "cannot use --search"),
    ],
)
def test_what_a_classifier_cannot_use_is_refused(digits: TrainedRun, request_: PredictRequest, message: str) -> None:
    with pytest.raises(UserError, match=message):
        digits.predict(request_)


def test_files_that_are_no_images_are_named(digits: TrainedRun, tmp_path: Path) -> None:
    file = tmp_path / "page.png"
    file.write_text("<html>")
    with pytest.raises(UserError, match=r"page\.png cannot be read as an image") as error:
        digits.predict(PredictRequest((file,)))
    assert "not videos" in str(error.value)
