"""docs/hf.md and the README say what the code does: settings, defaults, losses, presets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from command_line import call
from meltr.plugins import discover
from meltr.setting_keys import Keys
from meltr_hf.names import LOSSES
from meltr_hf.options import HfOptions
from meltr_hf.presets import PRESETS

PACKAGE = Path(__file__).resolve().parents[1]
PAGE = PACKAGE.parents[1] / "docs" / "hf.md"


@pytest.fixture(scope="module")
def page() -> str:
    if not PAGE.is_file():
        pytest.skip("no docs/hf.md here: the tests run outside the repository")
    return PAGE.read_text(encoding="utf-8")


def first_cells(page: str, title: str, table: int = 0) -> list[list[str]]:
    """Return the names in the first cell of every row of a table below a title."""
    tables = re.findall(r"(?:^\|.*\n)+", page.split(f"## {title}\n", 1)[1].split("\n## ")[0], re.M)
    return [re.findall(r"`([\w-]+)`", row.split("|")[1]) for row in tables[table].splitlines()[2:]]


def test_the_settings_of_the_page_exist_with_their_defaults(page: str) -> None:
    registry = discover()
    keys = Keys(registry, registry.backbone("hf"))
    text = page + (PACKAGE / "README.md").read_text(encoding="utf-8")
    for name in re.findall(r"--set '?([\w.]+)=", text):
        keys.expand(name, "the page")
    rows = [
        line
        for line in page.split("## Settings\n", 1)[1].splitlines()
        if line.startswith("| `") and line.count("|") == 4
    ]
    for row in rows:
        names, values = (re.findall(r"[\w.']+", cell) for cell in row.split("|")[1:3])
        for name, value in zip(names, values, strict=True):
            default = getattr(HfOptions(), name, None)
            if name in HfOptions.model_fields and value != "peft's":
                assert str(default) in (value, f"{value}.0"), name


def test_the_losses_and_presets_of_the_page_are_those_of_the_plugin(page: str) -> None:
    named = {name for cells in first_cells(page, "Losses") for name in cells}
    assert named == {name for losses in LOSSES.values() for name in losses}
    presets = {name for cells in first_cells(page, "Settings", 1) for name in cells} - {*LOSSES, "--sample"}
    assert presets == {preset.name for preset in PRESETS}


def test_what_it_runs_on_the_sample_can_be_run(page: str) -> None:
    """A command that a reader copies names all that it needs; ``verify`` takes the same words as ``run``."""
    texts = page + (PACKAGE / "README.md").read_text(encoding="utf-8")
    found = {words.strip() for words in re.findall(r"meltr (?:run|verify) ([^`#\n]*--sample[^`#\n]*)", texts)}
    assert found
    for words in found:
        result = call("run", *words.split(), "--dry-run")
        assert result.exit_code == 0, result.stderr
