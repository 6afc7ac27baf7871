"""Image folders: pictures as torchvision and core read them; every folder and file that is missing, broken or odd."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from meltr.context import RunContext
from meltr.errors import UserError
from meltr_vision.data.folders import read_image_folder
from meltr_vision.data.pictures import read_square
from meltr_vision.data.splits import build_data

Make = Callable[..., RunContext]


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
