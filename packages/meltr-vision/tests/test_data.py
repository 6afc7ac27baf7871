"""Readers: official layouts, folders, digits; every kind of missing or broken file; splits."""

from __future__ import annotations

import hashlib
import io
import json
import os
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
from meltr_vision.data import splits as data_module
from meltr_vision.data.folders import read_image_folder, read_square
from meltr_vision.data.images import CIFARS, miniature, read_cifar, read_digits
from meltr_vision.data.splits import build_data
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
    mean, std = data_module.NORMALISATION["digits"]
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


def save(folder: Path, name: str, size: tuple[int, int] = (20, 10), colour: str = "red") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(folder / name)


def test_image_folder(tmp_path: Path, make_context: Make) -> None:
    for split, count in (("train", 4), ("val", 2), ("test", 1)):
        for name, colour in (("cat", "red"), ("dog", "blue")):
            for i in range(count):
                save(tmp_path / split / name, f"{i}.png", (20 + i, 12), colour)
    (tmp_path / "train" / "cat" / ".hidden.png").write_bytes(b"")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    data = build_data(make_context("image_folder", spec={"data_root": tmp_path}, image_size=16))
    assert data.meta["splits"] == {"train": 8, "validation": 4, "test": 2}
    assert data.meta["class_names"] == ["cat", "dog"]
    assert data.train.images.shape == (8, 3, 16, 16)
    assert data.train.images[0, :, 0, 0].tolist() == [255, 0, 0]
    assert data.test.files == ("test/cat/0.png", "test/dog/0.png")


def test_resize_and_centre_crop_like_torchvision(tmp_path: Path, make_context: Make) -> None:
    from torchvision.transforms import functional as tv

    noise = np.random.default_rng(0).integers(0, 256, (40, 61, 3), dtype=np.uint8)
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.fromarray(noise).save(tmp_path / "train" / name / "x.png")
    data = build_data(
        make_context("image_folder", spec={"data_root": tmp_path, "data": {"validation": 0}}, image_size=24)
    )
    expected = tv.center_crop(tv.resize(Image.fromarray(noise), 24), [24, 24])
    np.testing.assert_array_equal(data.train.images[0].permute(1, 2, 0).numpy(), np.asarray(expected))


def test_image_folder_errors(tmp_path: Path, make_context: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(root: Path | None) -> None:
        build_data(make_context("image_folder", spec={"data_root": root}, image_size=16))

    with pytest.raises(UserError, match="--data-root was not given"):
        read(None)
    with pytest.raises(UserError, match="has no folder train/"):
        read(tmp_path)
    (tmp_path / "train" / "cat").mkdir(parents=True)
    with pytest.raises(UserError, match="has 1 class folders"):
        read(tmp_path)
    (tmp_path / "train" / "dog").mkdir()
    with pytest.raises(UserError, match="holds no images"):
        read(tmp_path)
    for i in range(9):
        save(tmp_path / "train" / "cat", f"{i}.png")
    for i in range(7):
        (tmp_path / "train" / "dog" / f"bad{i}.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match="7 of 16 images") as caught:
        read(tmp_path)
    assert "train/dog/bad0.jpg (is not an image that can be read)" in caught.value.message
    assert "bad6" not in caught.value.message
    save(tmp_path / "val" / "cow", "0.png")
    with pytest.raises(UserError, match="classes that train/ lacks: cow"):
        read(tmp_path)
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    (tmp_path / "val" / "cow").rename(tmp_path / "val" / "cat")
    with pytest.raises(UserError, match="in memory, more than half"):
        read(tmp_path)


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


def folders(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 20, 3), 90, np.uint8)).save(root / name)


def test_hidden_folders_inside_classes_do_not_count(tmp_path):
    folders(tmp_path, "train/cat/0.png", "train/dog/0.png", "train/cat/.ipynb_checkpoints/0.png", "train/cat/sub/1.png")
    files = read_image_folder(tmp_path, size=16).train.files
    assert files == ("train/cat/0.png", "train/cat/sub/1.png", "train/dog/0.png")


def test_a_circle_of_links_in_a_class_ends(tmp_path):
    folders(tmp_path, "train/cat/0.png", "train/dog/0.png")
    (tmp_path / "train/cat/again").symlink_to(tmp_path / "train/cat")
    assert len(read_image_folder(tmp_path, size=16).train) == 2


def test_a_class_without_an_image_is_refused_with_what_is_there(tmp_path):
    folders(tmp_path, "train/cat/0.png", "train/dog/0.png")
    (tmp_path / "train/empty").mkdir()
    (tmp_path / "train/raw").mkdir()
    (tmp_path / "train/raw/0.heic").write_bytes(b"x")
    with pytest.raises(UserError, match=r"classes without an image: empty, raw \(1 file \.heic\)"):
        read_image_folder(tmp_path, size=16)


def test_broken_images_are_named_or_skipped_and_named_if_asked(tmp_path):
    classes = ("train/cat", "train/dog", "test/cat", "test/dog")
    folders(tmp_path, *(f"{each}/{number}.png" for each in classes for number in "01"))
    for name in ("train/cat/0.png", "test/dog/1.png"):
        (tmp_path / name).write_bytes(b"<html>")
    with pytest.raises(UserError, match=r"1 of 4 images below .*\n  train/cat/0\.png"):
        read_image_folder(tmp_path, size=16)
    skipped = []
    found = read_image_folder(tmp_path, size=16, skipped=skipped)
    assert found.train.files == ("train/cat/1.png", "train/dog/0.png", "train/dog/1.png")
    assert found.test.labels.tolist() == [0, 0, 1]
    assert [each.split(" ")[0] for each in skipped] == ["train/cat/0.png", "test/dog/1.png"]
    (tmp_path / "train/cat/1.png").write_bytes(b"")
    with pytest.raises(UserError, match="classes without an image: cat"):
        read_image_folder(tmp_path, size=16, skipped=[])


def test_no_image_is_missing_without_a_word(tmp_path):
    """Links that lead nowhere, formats that are not read, files that are none: each counts as a broken image."""
    folders(tmp_path, "train/cat/0.png", "train/dog/0.png", "train/dog/1.jfif.png")
    (tmp_path / "train/dog/1.jfif.png").rename(tmp_path / "train/dog/1.jfif")  # another ending of JPEG files
    assert len(read_image_folder(tmp_path, size=16).train) == 3
    (tmp_path / "train/cat/1.png").symlink_to("nowhere.png")
    (tmp_path / "train/cat/2.png").mkdir()
    (tmp_path / "train/dog/2.heic").write_bytes(b"x")
    skipped = []
    assert len(read_image_folder(tmp_path, size=16, skipped=skipped).train) == 3
    assert [each.split(" ")[0] for each in skipped] == ["train/cat/1.png", "train/dog/2.heic"]
    with pytest.raises(UserError, match=r"2 of 5 images(.|\n)*2\.heic \(\.heic files are not read\)"):
        read_image_folder(tmp_path, size=16)


def test_a_link_upwards_gives_a_class_no_images_of_another_class_or_split(tmp_path):
    folders(tmp_path, "train/cat/0.png", "train/dog/0.png", "test/cat/1.png")
    (tmp_path / "train/cat/up").symlink_to("..")
    (tmp_path / "train/dog/top").symlink_to("../..")
    assert read_image_folder(tmp_path, size=16).train.files == ("train/cat/0.png", "train/dog/0.png")


def test_a_split_under_another_name_is_refused(tmp_path):
    folders(tmp_path, "train/cat/0.png", "train/dog/0.png", "validation/cat/0.png")
    with pytest.raises(UserError, match=r"has a folder validation/, which is not read(.|\n)*Rename it to val/"):
        read_image_folder(tmp_path, size=16)
    (tmp_path / "val").write_text("a list of files")
    with pytest.raises(UserError, match=r"val is not a folder"):
        read_image_folder(tmp_path, size=16)


def test_images_of_16_bits_and_orientation_are_read_as_in_core(tmp_path):
    ramp = np.tile(np.linspace(0, 65535, 16).astype(np.uint16), (16, 1))
    Image.fromarray(ramp).save(tmp_path / "a.png")
    assert abs(float(read_square(tmp_path / "a.png", 16).mean()) - 127) < 2
    exif = Image.Exif()
    exif[0x0112] = 3
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "b.png", exif=exif)
    np.testing.assert_array_equal(read_square(tmp_path / "b.png", 16), pixels[::-1, ::-1].transpose(2, 0, 1))
    Image.fromarray((ramp / 65535).astype(np.float32)).save(tmp_path / "c.tif")
    assert "floating-point" in read_square(tmp_path / "c.tif", 16)


@pytest.mark.parametrize(
    ("part", "name", "said"),
    [
        ("train", "cafe\u0301", r"two classes whose names look the same: 'cafe\\u0301' and 'caf\\xe9'"),
        ("train", "dog ", "two classes whose names look the same: 'dog' and 'dog '"),
        ("val", "cafe\u0301", r"val has a class 'cafe\\u0301', which looks like 'caf\\xe9' of train/"),
        ("train", "link", "link is a link that leads nowhere"),
    ],
)
def test_classes_that_look_the_same_or_are_not_there_are_named(tmp_path, part, name, said):
    for each in ("train/dog", "train/caf\xe9", f"{part}/{name}"):
        if name == each.rpartition("/")[2] == "link":
            (tmp_path / part / name).symlink_to("link")
            continue
        (tmp_path / each).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / each / "0.png")
    with pytest.raises(UserError, match=said):
        read_image_folder(tmp_path, size=8)
