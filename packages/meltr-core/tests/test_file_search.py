"""Which files below a folder count: no hidden ones, and each once, however folders are linked."""

from __future__ import annotations

import os

import pytest

from meltr.errors import UserError
from meltr.file_search import endings_of, files_below
from meltr.video.annotations.finding import index_by_stem, other_endings


def tree(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def test_hidden_files_and_folders_do_not_count(tmp_path):
    tree(tmp_path, "a.mp4", ".b.mp4", "one/c.mp4", "one/.ipynb_checkpoints/d.mp4", "__MACOSX/e.mp4", "._f.mp4")
    assert [file.name for file in files_below(tmp_path)] == ["a.mp4", "c.mp4"]
    assert [file.name for file in files_below(tmp_path, deep=False)] == ["a.mp4"]
    assert list(files_below(tmp_path / "nowhere")) == []


def test_a_circle_of_links_ends_and_linked_folders_are_read(tmp_path):
    tree(tmp_path, "root/videos/a.mp4", "elsewhere/b.mp4")
    os.symlink(tmp_path / "root", tmp_path / "root/videos/again")
    os.symlink(tmp_path / "elsewhere", tmp_path / "root/videos/linked")
    found = sorted(file.name for file in files_below(tmp_path / "root"))
    assert found == ["a.mp4", "b.mp4"]
    assert sorted(index_by_stem(tmp_path / "root", ["videos"])) == ["a", "b"]


def test_a_link_upwards_brings_no_files_from_elsewhere(tmp_path):
    tree(tmp_path, "train/cat/a.png", "train/dog/b.png", "test/cat/c.png")
    os.symlink("..", tmp_path / "train/cat/up")
    os.symlink("../..", tmp_path / "train/cat/top")
    assert [file.name for file in files_below(tmp_path / "train/cat")] == ["a.png"]


def test_a_name_that_is_not_utf8_is_refused(tmp_path):
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    with pytest.raises(UserError, match="not UTF-8: caf"):
        list(files_below(tmp_path))


def test_a_folder_that_cannot_be_read_is_refused(tmp_path, monkeypatch):
    def walk(folder, *, followlinks, onerror):
        onerror(PermissionError(13, "Permission denied", str(folder)))
        return iter(())

    monkeypatch.setattr(os, "walk", walk)  # root may read everything
    with pytest.raises(UserError, match=r"Cannot read the folder .*: Permission denied"):
        list(files_below(tmp_path))


def test_other_endings_are_named_with_their_number(tmp_path):
    tree(tmp_path, *[f"videos/v{number}.rmvb" for number in range(6)], "videos/v6.mp4", "videos/other.rmvb")
    assert endings_of(files_below(tmp_path), (".mp4",)) == "7 files .rmvb"
    missing = [f"v{number}" for number in range(6)]
    assert other_endings(tmp_path, ["videos"], missing).startswith("6 files .rmvb of these names are there; known")
    assert other_endings(tmp_path, ["videos"], ["nothing"]) == ""
