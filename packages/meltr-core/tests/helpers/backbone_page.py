"""What the tests of all backbones compare with the code: the backbone's page in docs, and its package's README."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import pytest
import torch

from meltr.errors import UserError
from meltr.plugins import discover
from meltr.setting_keys import Keys
from meltr.specs import BackboneTask
from places import ROOT

DIFFERENCES = "Paper, released code, and meltr"
"""Title of the table whose last column names the settings that choose between the paper and the released code."""


class BackbonePage:
    """Checks of ``docs/BACKBONE.md`` and of the README of a package, whose test class inherits them.

    Args:
        backbone: Name of the backbone.
        settings: Title of a table -> number of the column in which settings are named.
        values: Words in these columns that look like settings and are values of some.
        least: Smallest number of settings that the page has to name.
        switches: Settings that the table `DIFFERENCES` has to name.
        losses: Names of the losses that the example of the README computes, in this order.
    """

    backbone: ClassVar[str]
    settings: ClassVar[Mapping[str, int]]
    values: ClassVar[Collection[str]] = ()
    least: ClassVar[int] = 30
    switches: ClassVar[Collection[str]]
    losses: ClassVar[Collection[str]]

    @pytest.fixture
    def page(self) -> str:
        """Return the page; the test is skipped if it is not there."""
        path = ROOT / "docs" / f"{self.backbone}.md"
        if not path.is_file():
            pytest.skip(f"no docs/{path.name} here: the tests run outside the repository")
        return path.read_text(encoding="utf-8")

    def test_every_setting_that_the_page_names_exists(self, page: str) -> None:
        registry = discover()
        keys = Keys(registry, registry.backbone(self.backbone))
        named = re.findall(r"--set ([\w.]+)=", page)
        for title, column in self.settings.items():
            named += [name for row in rows(page, title) for name in re.findall(r"`([\w.]+)`", row[column])]
        assert len(named) > self.least
        for name in set(named) - set(self.values):
            keys.expand(name, "the page")  # UserError where there is none
        with pytest.raises(UserError):
            keys.expand("no_such_setting", "the page")

    def test_every_released_switch_is_in_the_table(self, page: str) -> None:
        text = " ".join(row[-1] for row in rows(page, DIFFERENCES))
        for name in self.switches:
            assert f"`{name.rpartition('.')[2]}`" in text or f"`{name}`" in text, name

    def test_every_task_is_in_the_table(self, page: str) -> None:
        info = discover().backbone(self.backbone)
        table = rows(page, "Tasks and data sets")
        assert {row[0].split("`")[1] for row in table} == {entry.task for entry in info.tasks}
        for entry in info.tasks:
            mine = [row for row in table if row[0].startswith(f"`{entry.task}`")]
            found = [name for row in mine for name in re.findall(r"`([\w-]+)`", row[1])]
            assert found == list(entry.datasets) or (len(mine) > 1 and set(found) == set(entry.datasets)), found
            for row in mine:
                assert row[2] == losses_as_text(entry), row

    def test_links_lead_somewhere(self, page: str) -> None:
        readme = ROOT / "packages" / f"meltr-{self.backbone}" / "README.md"
        for text, folder in ((page, ROOT / "docs"), (readme.read_text(encoding="utf-8"), readme.parent)):
            for name, anchor in re.findall(r"\]\((?!http)([^)#\s]*)(?:#([\w-]+))?\)", text):
                target = folder / name if name else ROOT / "docs" / f"{self.backbone}.md"
                assert target.exists(), name
                titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.M) if anchor else []
                anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
                assert not anchor or anchor in anchors, f"{name}#{anchor}"

    def test_the_example_of_the_readme_runs(self) -> None:
        readme = (ROOT / "packages" / f"meltr-{self.backbone}" / "README.md").read_text(encoding="utf-8")
        (example,) = re.findall(r"^```python\n(.*?)^```", readme, re.M | re.S)
        names: dict[str, Any] = {}
        exec(compile(example, "README.md", "exec"), names)
        assert list(names["losses"]) == list(self.losses)
        assert all(torch.isfinite(loss) and loss.requires_grad for loss in names["losses"].values())
        self.check_names(names)

    def check_names(self, names: Mapping[str, Any]) -> None:
        """Check what else the example of the README has computed."""


def rows(page: str, title: str) -> list[list[str]]:
    """Return the cells of the first table below a title."""
    table = page.split(f"## {title}\n", 1)[1].split("| --- |", 1)[1]
    lines = [line for line in table.split("\n\n")[0].splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def losses_as_text(entry: BackboneTask) -> str:
    """Return the losses of a task as a table names them: the default ones, a semicolon, those that a user can add."""
    if entry.default_losses in ((), entry.losses):
        return ", ".join(entry.losses)
    others = entry.losses[len(entry.default_losses) :]
    return f"{', '.join(entry.default_losses)}; {', '.join(others)}"
