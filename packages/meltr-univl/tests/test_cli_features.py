"""``meltr data features``: the videos of a data set, mistakes, and going on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import command_line
from meltr.cli.app import build_app
from meltr_univl import commands
from meltr_univl.features.files import open_features

pytestmark = pytest.mark.usefixtures("no_installed_plugins")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data set of the user's own, of images."""
    folder = tmp_path / "data"
    (folder / "clips").mkdir(parents=True)
    rows = []
    for number, split in enumerate(("train", "train", "test")):
        Image.new("RGB", (24, 18), (80 * number, 0, 0)).save(folder / "clips" / f"{number}.png")
        rows.append({"split": split, "image": f"clips/{number}.png", "captions": ["a colour"], "label": "x"})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def call(root: Path, out: Path, *options: object) -> Any:
    app = build_app()
    commands.register(app)
    words = ["data", "features", "--dataset", "manifest", "--data-root", root, "--out", out, "--workers", 0, *options]
    return command_line.call(*words, app=app)


def test_features_of_a_manifest(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "features"
    result = call(root, out, "--extractor", "grid")
    assert result.exit_code == 0, result.output
    assert f"{out}: features of 3 videos (3 new), grid, dimension 80, 4 vectors per second" in result.output
    source = open_features(out)
    for number in range(3):
        reds = source.features(f"clips/{number}.png")[0, :36:3]
        np.testing.assert_allclose(reds, 80 * number / 255, atol=1e-6)
    again = json.loads(call(root, out, "--extractor", "grid", "--json", "--task", "retrieval").stdout)
    made: dict[str, Any] = {"extractor": "grid", "width": 80, "rate": 4.0, "weights": None}
    assert again == {"features": str(out), "record": made, "total": 3, "added": 0, "failed": {}}


def test_what_cannot_be_decoded_is_told(root: Path, tmp_path: Path) -> None:
    (root / "clips" / "1.png").write_text("no picture")
    result = call(root, tmp_path / "features", "--extractor", "grid")
    assert result.exit_code == 0, result.output
    assert "warning: 1 of 3 videos could not be decoded and have no features: clips/1.png" in result.output
    (root / "clips" / "1.png").unlink()
    result = call(root, tmp_path / "features", "--extractor", "grid")
    assert result.exit_code == 2
    assert "1 of 3 videos that the annotations name are not in" in result.output
    assert call(root, tmp_path / "features", "--extractor", "grid", "--allow-missing").exit_code == 0


def test_mistakes_are_told_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    absent, out = tmp_path / "absent", tmp_path / "features"
    for options, problem in (
        ((), "the extractor auto needs weights"),
        (("--extractor", "s3d-howto100m"), "the extractor s3d-howto100m needs weights"),
        (("--extractor", "gird"), "Did you mean 'grid'"),
        (("--extractor", "grid", "--weights", absent), "the extractor grid has no weights"),
        (("--weights", absent), "There is no file of weights"),
        (("--extractor", "grid", "--sample"), "--data-root was given too"),
        (("--extractor", "grid"), "does not exist"),
    ):
        result = call(absent, out, *options)
        assert result.exit_code == 2, options
        assert problem in " ".join(result.output.split()), result.output
    assert not out.exists()
