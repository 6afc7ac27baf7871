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


def test_the_training_loop_learns(text):
    diff = re.search(r"```diff\n(.*?)```", text, re.S)[1]
    kept = [line[1:] for line in diff.splitlines() if not line.startswith("-")]
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    points = torch.randn(64, 3)

    def primary(model, batch):
        return (model(batch)[:, 0] - batch.sum(1)).square().mean()

    scope = {
        "torch": torch,
        "model": model,
        "loader": [points] * 120,
        "optimizer": torch.optim.Adam(model.parameters(), 0.05),
        "primary": primary,
        "auxiliary_1": lambda model, batch: model(batch).square().mean(),
        "auxiliary_2": lambda model, batch: model.weight.square().sum(),
    }
    before = primary(model, points).item()
    exec("\n".join(kept), scope)
    assert primary(model, points).item() < 0.5 * before
    assert scope["meltr"].outer_steps == 39


def test_first_two_shell_blocks_are_the_commands(text):
    blocks = re.findall(r"```sh\n(.*?)```", text, re.S)
    assert "meltr run" in blocks[0]
    assert "nox" in blocks[1]
