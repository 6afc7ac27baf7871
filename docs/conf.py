"""The site of the documentation: ``nox -s docs``."""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.application import Sphinx

from meltr.version import __version__

ROOT = Path(__file__).parents[1]

project = "meltr"
copyright = "the authors of meltr"  # Sphinx reads this name
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "results", "images", "notebooks"]
html_theme = "furo"
html_title = f"meltr {__version__}"
html_show_copyright = False
html_extra_path: list[str] = []
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
default_role = "code"
nitpicky = False
linkcheck_timeout = 15

PUBLISHED = re.compile(r"\]\(\.\./([\w./-]+)(#[\w-]+)?\)")
INSIDE = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "README.md": "index.md",
    "packages/meltr-core/README.md": "index.md",
}
"""Files outside this folder that have a page of the site."""


def inside(app: Sphinx, name: str, content: list[str]) -> None:
    """Let links to files outside the folder of the pages lead to their pages."""

    def page(match: re.Match[str]) -> str:
        return f"]({INSIDE[match[1]]})" if match[1] in INSIDE else match[0]

    content[0] = PUBLISHED.sub(page, content[0])


def setup(app: Sphinx) -> None:
    """Register `inside`."""
    app.connect("source-read", inside)
