"""The guide for authors: each of its blocks is run as the file that a reader would make of it."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from command_line import assert_stopped, command_line
from measure_cases import only_agreement
from meltr.engine.run import execute
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


def test_its_data_set_and_task_are_listed_and_ask_for_a_folder(waves, tmp_path):
    both = written(tmp_path, "denoising", 2)
    registry = discover([both])
    task = registry.task("denoising")
    assert (task.metrics, task.higher_is_better) == (("mse",), False)
    source = waves.read_text().replace('task="classification"', 'task="denoising"')
    source = source.replace('datasets=("waves",)', 'datasets=("my-waves",)').replace('name="waves", s', 'name="own", s')
    source = source.replace("waves(512, 1)", 'TensorDataset(*torch.load(spec.data_root / "waves.pt"))')
    user = tmp_path / "own.py"
    user.write_text(source.partition("@meltr.hookimpl")[0] + "@meltr.hookimpl" + source.split("@meltr.hookimpl", 2)[2])
    result = command_line(both, user)(
        "run", "--plugin", both, "--plugin", user, "--backbone", "own", "--output-dir", tmp_path / "runs"
    )
    assert_stopped(
        result, "my-waves needs its files, and --data-root was not given", "waves.pt   noisy and clean waves"
    )


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
