"""docs/violet.md and the README say what the code does: settings, files, refusals, links, the example."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from meltr.errors import UserError
from meltr.plugins import discover
from meltr.setting_keys import Keys
from meltr_violet.options import VioletOptions
from meltr_violet.plugin import register_backbones
from meltr_violet.prepared import LAYOUTS
from meltr_violet.presets import RELEASED

PACKAGE = Path(__file__).resolve().parents[1]
PAGE = PACKAGE.parents[1] / "docs" / "violet.md"


@pytest.fixture
def page() -> str:
    if not PAGE.is_file():
        pytest.skip("no docs/violet.md here: the tests run outside the repository")
    return PAGE.read_text(encoding="utf-8")


def rows(page: str, title: str) -> list[list[str]]:
    """Return the cells of the first table below a title."""
    table = page.split(f"## {title}\n", 1)[1].split("| --- |", 1)[1]
    lines = [line for line in table.split("\n\n")[0].splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_every_setting_that_the_page_names_exists(page: str) -> None:
    registry = discover()
    keys = Keys(registry, registry.backbone("violet"))
    switches = [row[-1] for row in rows(page, "Paper, released code, and meltr")]
    settings = [row[0] for row in rows(page, "Settings")] + [row[0] for row in rows(page, "Weights")]
    named = [name for cell in switches + settings for name in re.findall(r"`([\w.]+)`", cell)]
    named += re.findall(r"--set ([\w.]+)=", page)
    words = {"clean", "masked", "all", "own", "prompt", "released", "plain", "vtm", "none"}  # values of switches
    assert len(named) > 30
    for name in set(named) - words:
        keys.expand(name, "the page")  # UserError where there is none
    with pytest.raises(UserError):
        keys.expand("no_such_setting", "the page")


def test_every_released_switch_is_in_the_table(page: str) -> None:
    switches = " ".join(row[-1] for row in rows(page, "Paper, released code, and meltr"))
    for name in (*RELEASED, "bilevel.outer_batch", "combiner_options.start"):
        assert f"`{name.rpartition('.')[2]}`" in switches, name


def test_the_files_tasks_and_defaults_that_the_page_names(page: str) -> None:
    for layout in LAYOUTS:
        assert layout.dataset in page
    for each in ("img_msvd.pkl", "msvd_vq.pkl", "txt_tgif-action.json", "train_9k.json", "txt_msrvtt-retrieval.json"):
        assert each in page
        assert any(each in file.names for layout in LAYOUTS for file in layout.files)
    (info,) = register_backbones()
    table = rows(page, "Tasks and data sets")
    for entry in info.tasks:
        mine = [row for row in table if row[0].startswith(f"`{entry.task}`")]
        assert {name for row in mine for name in re.findall(r"`([\w-]+)`", row[1])} == set(entry.datasets)
        assert all(tuple(row[2].split(", ")) == entry.losses for row in mine)
    options = VioletOptions()
    assert f"{options.frames}, {options.image_size}, {options.text_length}" in page
    assert options.eval_batch_size == 16
    assert options.memory_mb == 2048


def test_links_lead_somewhere(page: str) -> None:
    for text, folder in ((page, PAGE.parent), ((PACKAGE / "README.md").read_text(encoding="utf-8"), PACKAGE)):
        for name, anchor in re.findall(r"\]\((?!http)([^)#\s]+)(?:#([\w-]+))?\)", text):
            target = folder / name
            assert target.exists(), name
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.M)
            anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
            assert not anchor or anchor in anchors, f"{name}#{anchor}"


def test_the_example_of_the_readme_runs() -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", (PACKAGE / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    names: dict[str, Any] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert list(names["losses"]) == ["answer", "vtm", "mtm", "mvm"]
    assert all(torch.isfinite(loss) and loss.requires_grad for loss in names["losses"].values())
