"""Folders that are written whole or not at all."""

from __future__ import annotations

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
