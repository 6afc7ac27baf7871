"""Writes a report: one HTML file that needs nothing else."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from meltr.files import write_text
from meltr.plugins import Registry
from meltr.report.page.facts import Facts, PictureOf, gather
from meltr.report.page.pictures import Pictures, draw_pictures
from meltr.version import __version__

if TYPE_CHECKING:
    import jinja2

TEMPLATES = Path(__file__).parent / "templates"


@functools.cache
def templates() -> jinja2.Environment:
    """Return the templates of reports; everything that they insert is escaped, and an unknown name is an error."""
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(facts: Facts, pictures: Pictures, picture_of: PictureOf | None = None) -> str:
    """Return a report as HTML.

    Args:
        facts: What it says.
        pictures: Its figures.
        picture_of: Gives the pictures of samples; None: none.
    """
    first = facts.configurations[0].group.runs[0].path
    media = {name: picture_of(first, name) for name in _media(facts)} if picture_of is not None else {}
    numbered = [(f"run-{place}", each) for place, each in enumerate(facts.configurations, start=1)]
    return (
        templates()
        .get_template("report.html.j2")
        .render(facts=facts, pictures=pictures, media=media, numbered=numbered, slug=slug, version=__version__)
    )


def write_report(
    paths: Sequence[Path],
    output: Path,
    *,
    registry: Registry,
    metric: str | None = None,
    split: str | None = None,
    picture_of: PictureOf | None = None,
) -> Facts:
    """Write the report of some runs; return what it says.

    Args:
        paths: Folders of runs, or of several seeds; the first is the reference.
        output: The HTML file.
        registry: The plugins found.
        metric: The metric to compare; None: the primary one.
        split: ``test`` or ``validation``; None: test if every run has it.
        picture_of: Gives the pictures of samples; None: none.

    Raises:
        UserError: If the runs cannot be compared, a file is broken, or matplotlib is missing.
    """
    facts = gather(paths, metric=metric, split=split)
    page = render(facts, draw_pictures(facts, registry), picture_of)
    write_text(output, page)
    return facts


def _media(facts: Facts) -> list[str]:
    """Return the keys of all videos and images that the samples name."""
    chosen = [said.media for sample in facts.samples for said in sample.said.values()]
    return list(dict.fromkeys(name for name in [*(sample.media for sample in facts.samples), *chosen] if name))


def slug(text: str) -> str:
    """Return a text as a part of an id: letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
