"""The official files of CIFAR, digits and synthetic samples; every kind of missing or broken file; splits."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from meltr.context import RunContext
from meltr.errors import UserError
from meltr_vision.data.cifar import CIFARS, read_cifar
from meltr_vision.data.digits import read_digits
from meltr_vision.data.miniature import miniature
from meltr_vision.data.splits import build_data
from meltr_vision.data.transforms import NORMALISATION
from places import shared

Make = Callable[..., RunContext]


@pytest.mark.parametrize("dataset", ["cifar100", "cifar10"])
@pytest.mark.parametrize("inside", [False, True])
def test_official_layout(tmp_path: Path, make_context: Make, cifar_writer: Any, dataset: str, inside: bool) -> None:
    written = cifar_writer(tmp_path, dataset)
    root = tmp_path / CIFARS[dataset].folder if inside else tmp_path
    data = build_data(make_context(dataset, spec={"data_root": root, "data": {"validation": 0.25}}))
    assert data.meta["splits"] == {"train": 150, "validation": 50, "test": 100}
    assert data.meta["num_classes"] == len(data.meta["class_names"]) == CIFARS[dataset].classes
    assert data.meta["class_names"][3] == "name3"
    json.dumps(data.meta)
    for split, found in (("train", data.train), ("test", data.test)):
        pixels, labels = written[split]
        np.testing.assert_array_equal(found.images.permute(0, 2, 3, 1).numpy(), np.stack(pixels))
        assert found.labels.tolist() == labels
    assert sorted([*data.train.indices.tolist(), *data.validation.indices.tolist()]) == list(range(200))


def test_no_data_root(make_context: Make) -> None:
    with pytest.raises(UserError, match="--data-root was not given") as caught:
        build_data(make_context("cifar100", spec={}))
    assert "cifar-100-python/" in str(caught.value)
    assert "--set download=true" in str(caught.value)


def test_missing_and_half_downloaded(tmp_path: Path, make_context: Make, cifar_writer: Any) -> None:
    context = make_context("cifar10", spec={"data_root": tmp_path})
    with pytest.raises(UserError, match="cifar-10-batches-py does not exist"):
        build_data(context)
    cifar_writer(tmp_path, "cifar10")
    (tmp_path / "cifar-10-batches-py" / "data_batch_4").unlink()
    with pytest.raises(UserError, match="lacks data_batch_4") as caught:
        build_data(context)
    assert "data_batch_1 ... data_batch_5" in str(caught.value)


def broken(name: str) -> bytes:
    rows = np.zeros((3, 3072), np.uint8)
    contents: dict[str, Any] = {
        "shape": {"data": rows[:, :100], "fine_labels": [0, 1, 2]},
        "type": {"data": rows.astype(np.float32), "fine_labels": [0, 1, 2]},
        "list": {"data": [1, 2], "fine_labels": [0, 1]},
        "count": {"data": rows, "fine_labels": [0, 1]},
        "range": {"data": rows, "fine_labels": [0, 1, 100]},
        "text": {"data": rows, "fine_labels": ["a", "b", "c"]},
        "empty": {"data": rows[:0], "fine_labels": []},
        "other": {"data": rows, "labels": [0, 1, 2]},
        "no dict": [1, 2, 3],
    }
    return pickle.dumps(contents[name], protocol=2)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("shape", r"data is uint8 \(3, 100\), expected uint8 \(N, 3072\)"),
        ("type", "data is float32"),
        ("list", "data is list"),
        ("count", r"it has 3 images, but labels of shape \(2,\)"),
        ("range", "labels from 0 to 100, expected 0 to 99"),
        ("text", "label.* does not hold whole numbers"),
        ("empty", "0 images"),
        ("other", r"no entry 'fine_labels' \(found \['data', 'labels'\]\)"),
        ("no dict", r"found list"),
    ],
)
def test_broken_content(tmp_path: Path, cifar_writer: Any, name: str, problem: str) -> None:
    cifar_writer(tmp_path)
    file = tmp_path / "cifar-100-python" / "train"
    file.write_bytes(broken(name))
    with pytest.raises(UserError, match=problem) as caught:
        read_cifar(CIFARS["cifar100"], tmp_path, fetch=False)
    assert str(file) in caught.value.message
    assert "Delete" in str(caught.value.hint)


def test_truncated_and_hostile_files(tmp_path: Path, cifar_writer: Any) -> None:
    cifar_writer(tmp_path)
    file = tmp_path / "cifar-100-python" / "test"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="truncated or corrupt"):
        read_cifar(CIFARS["cifar100"], tmp_path, fetch=False)
    file.write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    with pytest.raises(UserError, match=r"asks for os\.system"):
        read_cifar(CIFARS["cifar100"], tmp_path, fetch=False)
    (tmp_path / "cifar-100-python" / "meta").write_bytes(pickle.dumps({"fine_label_names": ["one"]}))
    with pytest.raises(UserError, match="does not hold 100 names"):
        read_cifar(CIFARS["cifar100"], tmp_path, fetch=False)


def test_download_completes_a_half_folder(tmp_path: Path, cifar_writer: Any) -> None:
    cifar_writer(tmp_path / "away")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.add(tmp_path / "away" / "cifar-100-python", "cifar-100-python")
    (tmp_path / "archive.tar.gz").write_bytes(buffer.getvalue())
    cifar = replace(
        CIFARS["cifar100"],
        url=(tmp_path / "archive.tar.gz").as_uri(),
        md5=hashlib.md5(buffer.getvalue()).hexdigest(),
    )
    here = tmp_path / "here"
    (here / "cifar-100-python").mkdir(parents=True)
    (here / "cifar-100-python" / "meta").write_bytes(b"half")
    assert len(read_cifar(cifar, here / "cifar-100-python", fetch=True).train) == 200
    assert len(read_cifar(replace(cifar, url="file:///nowhere"), here, fetch=True).train) == 200
    with pytest.raises(UserError, match="cannot be fetched"):
        read_cifar(replace(cifar, url="file:///nowhere/x.tar.gz"), tmp_path / "new", fetch=True)


def test_digits_are_scikit_learns() -> None:
    read = read_digits()
    assert read.test is not None
    assert len(read.train) + len(read.test) == 1797
    images = np.concatenate([read.train.images, read.test.images]).reshape(-1, 64)
    original = np.rint(load_digits().data * 255 / 16).astype(np.uint8)
    assert Counter(map(bytes, images)) == Counter(map(bytes, original))
    values = read.train.images / 255
    mean, std = NORMALISATION["digits"]
    assert values.mean() == pytest.approx(mean[0], abs=0.002)
    assert values.std() == pytest.approx(std[0], abs=0.002)


def test_validation_held_out_and_limits(make_context: Make) -> None:
    spec = {
        "data": {"validation": 100, "held_out": 50, "train_limit": 300, "eval_limit": 60},
        "bilevel": {"outer_batch": "held_out"},
        "train": {"batch_size": 64},
    }
    data = build_data(make_context("digits", spec=spec))
    assert data.held_out is not None
    assert data.meta["splits"] == {"train": 300, "validation": 60, "test": 60, "held_out": 50}
    parts = [set(each.indices.tolist()) for each in (data.train, data.validation, data.held_out)]
    assert len(set.union(*parts)) == sum(map(len, parts))
    assert len(data.held_out) == 1
    assert len(next(data.held_out.batches(0))["label"]) == 50
    assert max(Counter(data.test.labels[data.test.indices].tolist()).values()) <= 7
    assert build_data(make_context("digits")).held_out is None


def test_no_validation(make_context: Make) -> None:
    data = build_data(make_context("digits", spec={"data": {"validation": 0}}))
    assert data.validation is None
    assert "validation" not in data.meta["splits"]


def test_the_seed_moves_batches_but_not_splits(make_context: Make) -> None:
    first, second = (build_data(make_context("digits", spec={"seed": seed})) for seed in (0, 1))
    assert torch.equal(first.validation.indices, second.validation.indices)
    labels = [next(each.train.batches(0))["label"].tolist() for each in (first, second)]
    assert labels[0] != labels[1]


def test_miniatures(make_context: Make) -> None:
    for dataset, classes in (("cifar100", 100), ("cifar10", 10), ("image_folder", 4)):
        data = build_data(make_context(dataset, spec={"sample": True, "data": {"validation": 0.2}}))
        assert data.meta["num_classes"] == classes
        assert data.meta["sample"] is True
        assert next(data.train.batches(0))["image"].shape[1:] == (3, 32, 32)
    split = miniature(10)
    assert split.test is not None
    means = np.stack([split.train.images[split.train.labels == c].mean((0, 2, 3)) for c in range(10)])
    nearest = ((split.test.images.mean((2, 3))[:, None] - means) ** 2).sum(-1).argmin(1)
    assert (nearest == split.test.labels).mean() > 0.8


def test_normalisation_and_augmentation_options(make_context: Make) -> None:
    def pipeline(dataset: str, **options: Any) -> Any:
        return build_data(make_context(dataset, **options)).train.pipeline

    assert (pipeline("digits").flip, pipeline("digits").padding) == (False, 1)
    assert (pipeline("cifar10").flip, pipeline("cifar10").padding) == (True, 4)
    assert pipeline("cifar10", mean=(0.1, 0.2, 0.3)).mean == (0.1, 0.2, 0.3)
    assert pipeline("cifar10", model="timm/vit_tiny_patch16_224", pretrained=True).mean == (0.5, 0.5, 0.5)
    with pytest.raises(UserError, match=r"options\.mean has 2 values"):
        pipeline("cifar10", mean=(0.1, 0.2))
    with pytest.raises(UserError, match="augment_padding=32 must be smaller than the image side of 32 pixels"):
        pipeline("cifar10", augment_padding=32)
    assert build_data(make_context("cifar10", image_size=48)).meta["image_size"] == 48


def test_unknown_dataset(make_context: Make) -> None:
    with pytest.raises(UserError, match="cannot read the data set 'mnist'"):
        build_data(make_context("mnist"))


def test_real_cifar100(tmp_path: Path, make_context: Make) -> None:
    folder = shared("data", "cifar100", "test.npz").parent
    packed = np.load(folder / "test.npz")
    strip = Image.open(io.BytesIO(packed["webp"][: packed["ends"][0]].tobytes())).convert("RGB")
    pixels = np.asarray(strip).reshape(-1, 32, 32, 3)
    lists = [v for v in json.loads((folder / "labels.json").read_text()).values() if isinstance(v, list)]
    names = next(v for v in lists if len(v) == 100 and isinstance(v[0], str))
    target = tmp_path / "cifar-100-python"
    target.mkdir()
    rows = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)
    content = pickle.dumps({"data": rows, "fine_labels": packed["fine"][: len(pixels)].tolist()}, protocol=2)
    for split in ("train", "test"):
        (target / split).write_bytes(content)
    (target / "meta").write_bytes(pickle.dumps({"fine_label_names": names}, protocol=2))
    data = build_data(make_context("cifar100", spec={"data_root": tmp_path, "data": {"validation": 0.2}}))
    assert data.meta["class_names"][0] == "apple"
    images = torch.cat([images for images, _ in data.test.batches(100)])
    assert images.mean((0, 2, 3)).abs().max() < 0.15
    assert (images.std((0, 2, 3)) - 1).abs().max() < 0.1
