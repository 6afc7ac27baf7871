"""What the top README shows must run as it stands."""

from __future__ import annotations

import re

import pytest
import torch

from meltr.engine.run import execute
from meltr.plugins import discover
from meltr.settings import resolve
from places import ROOT

README = ROOT / "README.md"


@pytest.fixture
def text() -> str:
    if not README.exists():
        pytest.skip("the repository's README is not here")
    return README.read_text()


def test_the_backbone_in_one_file_learns(text, tmp_path):
    file = tmp_path / "my_backbone.py"
    file.write_text(re.search(r"```python\n(# my_backbone.*?)```", text, re.S)[1])
    registry = discover([file])
    flags = {"train.lr": 0.1, "combiner_options.width": 16, "combiner_options.heads": 2, "device": "cpu"}
    spec = resolve(registry, backbone="mine", task="classification", dataset="noise", flags=flags, plugins=[file])
    results = execute(spec, run_dir=None, registry=registry)
    assert results["test"]["metrics"]["top1"] > 90


def test_the_readme_starts_with_a_training_loop_that_learns(text):
    loop = re.search(r"```(\w+)\n(.*?)```", text, re.S)
    assert loop[1] == "python"
    assert len([line for line in loop[2].splitlines() if line]) <= 10
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    points = torch.randn(64, 3)

    def task_losses(model, batch):
        return {
            "answer": (model(batch)[:, 0] - batch.sum(1)).square().mean(),
            "matching": model(batch).square().mean(),
            "masked": model.weight.square().sum(),
        }

    scope = {
        "torch": torch,
        "model": model,
        "loader": [points] * 120,
        "optimizer": torch.optim.Adam(model.parameters(), 0.05),
        "task_losses": task_losses,
    }
    before = task_losses(model, points)["answer"].item()
    exec(loop[2], scope)
    assert task_losses(model, points)["answer"].item() < 0.5 * before
    assert scope["meltr"].outer_steps == 39
    assert scope["step"].weights.keys() == task_losses(model, points).keys()


def test_first_two_shell_blocks_are_the_commands(text):
    blocks = re.findall(r"```sh\n(.*?)```", text, re.S)
    assert "meltr run" in blocks[0]
    assert "nox" in blocks[1]
