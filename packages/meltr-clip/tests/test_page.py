"""docs/clip.md and the README say what the code does: settings, tasks, links, the example."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from meltr.plugins import discover
from meltr.setting_keys import Keys
from meltr_clip.losses import dual, video
from meltr_clip.options import ClipOptions
from meltr_clip.plugin import register_backbones
from meltr_clip.weights.parts import FAMILIES, FRAMES
from meltr_clip.weights.small import IMAGE_SIZE

PACKAGE = Path(__file__).resolve().parents[1]
PAGE = PACKAGE.parents[1] / "docs" / "clip.md"


@pytest.fixture
def page() -> str:
    if not PAGE.is_file():
        pytest.skip("no docs/clip.md here: the tests run outside the repository")
    return PAGE.read_text(encoding="utf-8")


def tables(page: str, title: str) -> list[dict[str, list[str]]]:
    """Return the tables below a title: first cell -> all cells of its row."""
    section = re.split(r"^## ", page.split(f"## {title}\n", 1)[1], maxsplit=1, flags=re.M)[0]
    found = []
    for block in re.split(r"^\|(?: --- \|)+$", section, flags=re.M)[1:]:
        lines = [line for line in block.strip("\n").split("\n\n")[0].splitlines() if line.startswith("| ")]
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
        found.append({row[0]: row for row in rows})
    return found


def test_every_setting_that_the_page_names_exists(page: str) -> None:
    registry = discover()
    keys = Keys(registry, registry.backbone("clip"))
    named = re.findall(r"--set ([\w.]+)=", page)
    named += [name for row in tables(page, "Settings")[0] for name in re.findall(r"`([a-z_]+)`", row)]
    assert len(named) > 15
    for name in set(named):
        keys.expand(name, "the page")  # UserError where there is none


def test_tasks_losses_models_and_defaults_that_the_page_names(page: str) -> None:
    (info,) = register_backbones()
    tasks, losses = tables(page, "Tasks and data sets")
    for entry in info.tasks:
        row = tasks[f"`{entry.task}`"]
        assert tuple(re.findall(r"`([\w-]+)`", row[1])) == entry.datasets
        assert tuple(row[2].split(", ")) == entry.losses
    served = {"all": (True, True), "dual encoders": (True, False), "VideoMAE": (False, True)}
    for name, row in losses.items():
        assert served[row[2]] == (name.strip("`") in dual.LOSSES, name.strip("`") in video.LOSSES)
    assert {name.strip("`") for name in losses} == {*dual.LOSSES, *video.LOSSES}
    assert tuple(name.strip("`") for name in tables(page, "Models")[0]) == FAMILIES
    settings, options = tables(page, "Settings")[0], ClipOptions()
    assert settings["`prompt`"][1] == f"`{options.prompt}`"
    assert settings["`mask_ratio`"][1] == str(options.mask_ratio)
    assert settings["`image_size`"][1] == str(IMAGE_SIZE)
    assert f"A video is {FRAMES} frames" in page


def test_links_lead_somewhere(page: str) -> None:
    for name, anchor in re.findall(r"\]\((?!http)([^)#\s]*)(?:#([\w-]+))?\)", page):
        target = PAGE.parent / name
        titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.M)
        assert not anchor or anchor in [title.lower().replace(" ", "-") for title in titles], f"{name}#{anchor}"


def test_the_example_of_the_readme_runs() -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", (PACKAGE / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    names: dict[str, Any] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert list(names["losses"]) == ["contrastive", "sigmoid", "matching", "masked_text", "consistency"]
    assert all(torch.isfinite(loss) and loss.requires_grad for loss in names["losses"].values())
