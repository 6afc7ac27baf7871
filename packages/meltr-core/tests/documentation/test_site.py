"""The site's reference and its table of contents, without building it."""

from __future__ import annotations

import re
from pathlib import Path

import meltr

DOCS = Path(__file__).parents[4] / "docs"


def test_the_reference_has_every_public_name_once():
    found = re.findall(r"^\.\. auto(?:class|function):: meltr\.(\w+)$", (DOCS / "reference/api.md").read_text(), re.M)
    assert sorted(found) == sorted({*meltr.__all__} - {"hookimpl"})


def test_every_page_is_in_the_table_of_contents():
    contents = (DOCS / "index.md").read_text()
    listed = {
        line
        for block in re.findall(r"```\{toctree\}(.*?)```", contents, re.S)
        for line in block.splitlines()
        if line and not line.startswith(":")
    }
    pages = {
        path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md") if "_build" not in path.parts
    }
    assert listed == pages - {"index"}
