"""docs/alpro.md and the README say what the code does: settings, tasks, links, the example."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from meltr.errors import UserError
from meltr.plugins import discover
from meltr.setting_keys import Keys
from meltr_alpro.options import AlproOptions
from meltr_alpro.plugin import register_backbones
from meltr_alpro.presets import RELEASED

PACKAGE = Path(__file__).resolve().parents[1]
PAGE = PACKAGE.parents[1] / "docs" / "alpro.md"


@pytest.fixture
def page() -> str:
    if not PAGE.is_file():
        pytest.skip("no docs/alpro.md here: the tests run outside the repository")
    return PAGE.read_text(encoding="utf-8")


def rows(page: str, title: str) -> list[list[str]]:
    """Return the cells of the first table below a title."""
    table = page.split(f"## {title}\n", 1)[1].split("| --- |", 1)[1]
    lines = [line for line in table.split("\n\n")[0].splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_every_setting_that_the_page_names_exists(page: str) -> None:
    registry = discover()
    keys = Keys(registry, registry.backbone("alpro"))
    named = re.findall(r"--set ([\w.]+)=", page)
    for title, column in (("Paper, released code, and meltr", -1), ("Settings", 0), ("Frames", 0)):
        named += [name for row in rows(page, title) for name in re.findall(r"`([a-z_.]+)`", row[column])]
    assert len(named) > 25
    for name in set(named):
        keys.expand(name, "the page")  # UserError where there is none
    with pytest.raises(UserError):
        keys.expand("no_such_setting", "the page")


def test_tasks_losses_and_defaults_that_the_page_names(page: str) -> None:
    (info,) = register_backbones()
    table = {row[0].strip("`"): row for row in rows(page, "Tasks and data sets")}
    assert set(table) == {entry.task for entry in info.tasks}
    for entry in info.tasks:
        row = table[entry.task]
        assert tuple(re.findall(r"`([\w-]+)`", row[1])) == entry.datasets
        assert tuple(row[2].split(", ")) == entry.losses
    switches = " ".join(row[-1] for row in rows(page, "Paper, released code, and meltr"))
    assert all(f"`{name.rpartition('.')[2]}`" in switches for name in RELEASED)
    options = AlproOptions()
    assert f"{options.frames}, {options.image_size}, {options.text_length}" in page
    assert f"`rerank` = {options.rerank}" in page


def test_links_lead_somewhere(page: str) -> None:
    for text, folder in ((page, PAGE.parent), ((PACKAGE / "README.md").read_text(encoding="utf-8"), PACKAGE)):
        for name, anchor in re.findall(r"\]\((?!http)([^)#\s]*)(?:#([\w-]+))?\)", text):
            target = folder / name if name else PAGE
            assert target.exists(), name
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.M)
            anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
            assert not anchor or anchor in anchors, f"{name}#{anchor}"


def test_the_example_of_the_readme_runs() -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", (PACKAGE / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    names: dict[str, Any] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert list(names["losses"]) == ["answer", "vtc", "vtm", "mlm", "pem"]
    assert all(torch.isfinite(loss) and loss.requires_grad for loss in names["losses"].values())
