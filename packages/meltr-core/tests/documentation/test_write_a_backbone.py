"""The guide for authors: each of its blocks is run as the file that a reader would make of it."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import assert_stopped, command_line
from measure_cases import only_agreement
from meltr.engine.run import execute
from meltr.errors import UserError
from meltr.plugins import discover
from meltr.settings import resolve
from meltr.testing import BackboneConformance
from places import ROOT

GUIDE = ROOT / "docs" / "write_a_backbone.md"
README = ROOT / "README.md"


def blocks(page: Path) -> list[str]:
    if not page.is_file():
        pytest.skip(f"no {page.name} here: the tests run outside the repository")
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def written(folder: Path, name: str, number: int) -> Path:
    file = folder / f"{name}.py"
    file.write_text(blocks(GUIDE)[number], encoding="utf-8")
    return file


def read_metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def waves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("guide"), "waves", 0)


class TestTheGuide(BackboneConformance):
    """What the class of its third section is."""

    backbone = "waves"
    settings = {"train.batch_size": 8}

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _file(cls, waves: Path) -> None:
        cls.plugins = (waves,)


def test_the_class_of_the_guide_is_the_one_above():
    assert len(blocks(GUIDE)) == 8  # Each has a test here.
    names: dict[str, object] = {}
    exec(compile(blocks(GUIDE)[1], "guide", "exec"), names)
    shown = names["TestWaves"]
    assert issubclass(shown, BackboneConformance)
    assert (shown.backbone, shown.settings) == (TestTheGuide.backbone, TestTheGuide.settings)
    assert shown.plugins == ("waves.py",)


def test_its_backbone_learns_and_its_tracker_keeps_the_numbers(waves, tmp_path):
    tracker = written(tmp_path, "tracker", 3)
    registry = discover([waves, tracker])
    flags = {"train.lr": 0.01, "device": "cpu", "combiner_options.width": 16, "combiner_options.heads": 2}
    spec = resolve(registry, backbone="waves", flags=flags)
    assert (spec.task, spec.dataset) == ("classification", "waves")
    results = execute(spec, run_dir=tmp_path / "run", registry=registry)
    assert results["test"]["metrics"]["top1"] > 50  # chance: 25
    with (tmp_path / "run" / "losses.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", "frequency", "denoise"]
    assert float(rows[-1]["denoise"]) < float(rows[0]["denoise"])


def test_its_task_and_data_set_are_trained_on_and_the_files_are_asked_for(tmp_path):
    file = written(tmp_path, "restoring", 2)
    clean = (torch.linspace(0, 6.28, 32) * torch.arange(1, 5).repeat(16)[:, None]).sin()
    torch.save((clean + torch.randn(64, 32, generator=torch.Generator().manual_seed(0)), clean), tmp_path / "waves.pt")
    registry = discover([file])
    small = {"combiner_options.width": 16, "combiner_options.heads": 2, "device": "cpu", "train.batch_size": 16}
    flags = {**small, "train.lr": 0.01, "train.epochs": 8, "data_root": tmp_path}
    results = execute(resolve(registry, backbone="restorer", flags=flags), run_dir=tmp_path / "run", registry=registry)
    scores = [line["metrics"]["mse"] for line in read_metrics(tmp_path / "run") if line["kind"] == "evaluation"]
    assert results["validation"]["metrics"]["mse"] == min(scores) < 0.5  # The noise has variance 1.
    (tmp_path / "waves.pt").unlink()
    call = command_line(file)
    words = ("run", "--plugin", file, "--backbone", "restorer", "--output-dir", tmp_path / "runs")
    assert_stopped(call(*words), "my-waves needs its files, and --data-root was not given", "noisy and clean waves")
    assert_stopped(call(*words, "--data-root", tmp_path), "waves.pt does not exist", "shape (N, 32) each")


@pytest.mark.parametrize(("name", "number", "tests"), [("anchored", 4, 1), ("clipped", 6, 2)])
def test_its_combiner_and_its_scheme_pass_the_tests_beside_them(name, number, tests, tmp_path, monkeypatch):
    written(tmp_path, name, number)
    monkeypatch.syspath_prepend(tmp_path)
    names: dict[str, object] = {}
    exec(compile(blocks(GUIDE)[number + 1], f"test_{name}.py", "exec"), names)
    found = [each for key, each in names.items() if key.startswith("test_")]
    assert len(found) == tests
    for test in found:
        test()
    del sys.modules[name]


def test_its_combiner_is_trained_along_the_direction_of_its_scheme(waves, tmp_path):
    """The primary loss keeps the weight 1, the other one moves from half of `most`."""
    files = [waves, written(tmp_path, "anchored", 4), written(tmp_path, "clipped", 6)]
    registry = discover(files)
    flags = {"combiner": "anchored", "combiner_options.most": 3, "scheme": "clipped", "scheme_options.most": 0.5}
    flags |= {"device": "cpu", "train.max_steps": 4, "train.log_every": 1, "bilevel.every": 1, "bilevel.outer_lr": 0.1}
    execute(resolve(registry, backbone="waves", flags=flags), run_dir=tmp_path / "run", registry=registry)
    weights = [line["sensitivities"] for line in read_metrics(tmp_path / "run") if line["kind"] == "train"]
    assert [each["frequency"] for each in weights] == [1, 1, 1, 1]
    learned = [each["denoise"] for each in weights]
    assert len(set(learned)) == 4
    assert all(0 < each < 3 for each in learned)
    with pytest.raises(UserError, match="most"):
        resolve(registry, backbone="waves", flags={**flags, "scheme_options.most": 0})


class TestTheReadme(BackboneConformance):
    """The backbone in one file of the README."""

    backbone = "mine"

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _file(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        (example,) = [block for block in blocks(README) if "hookimpl" in block]
        file = tmp_path_factory.mktemp("readme") / "my_backbone.py"
        file.write_text(example, encoding="utf-8")
        cls.plugins = (file,)

    def test_it_passes_meltr_verify(self, monkeypatch):
        only_agreement(monkeypatch)  # neither schemes nor costs decide it
        words = ("--backbone", "mine", "--device", "cpu", "--repeat", 1, "--no-float64")
        result = command_line(*self.plugins)("verify", "--plugin", *self.plugins, *words)
        assert result.exit_code == 0, result.output
        assert result.stdout.rstrip().splitlines()[-1].startswith("OK: ")
