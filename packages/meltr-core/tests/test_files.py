"""Folders that are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from meltr.files import whole_folder


def test_a_folder_takes_the_place_of_an_earlier_one_or_changes_nothing(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "model"
    for content in ("first", "second"):
        with whole_folder(place) as beside:
            (beside / content).write_text(content)
            assert not (place / content).exists()
        assert [path.name for path in place.iterdir()] == [content]

    def fail() -> None:
        with whole_folder(place) as beside:
            (beside / "third").write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        fail()
    assert [path.name for path in place.iterdir()] == ["second"]
    assert [path.name for path in place.parent.iterdir()] == ["model"]


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    place = tmp_path / "model"
    with whole_folder(place) as beside:
        (beside / "first").write_text("whole")
    child = os.fork()
    if child == 0:
        Path.replace = lambda self, target: os._exit(9)  # type: ignore[method-assign, assignment, return-value]
        with whole_folder(place) as beside:
            (beside / "second").write_text("whole")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert [path.read_text() for path in tmp_path.rglob("first")] == ["whole"]
    with pytest.raises(KeyboardInterrupt), whole_folder(place):
        raise KeyboardInterrupt
    assert (place / "first").read_text() == "whole"


def test_a_rename_that_fails_brings_the_earlier_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "model"
    with whole_folder(place) as beside:
        (beside / "first").write_text("whole")

    def fail(self: Path, target: Path) -> None:
        raise OSError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="Permission denied"), whole_folder(place):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "first"]
