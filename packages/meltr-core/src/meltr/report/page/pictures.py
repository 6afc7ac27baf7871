"""Figures of a report as pictures inside the page: for light and dark, for a wide screen and a phone."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from meltr.errors import UserError
from meltr.folders.run_folder import RunFolder
from meltr.limits import UnreadableError, file_bytes
from meltr.plugins import Registry
from meltr.report import plots, style
from meltr.report.combiner_figures import FIGURES as OF_COMBINER
from meltr.report.logged_figures import alignment_figure, weights_figure
from meltr.report.measured_figures import FIGURES as MEASURED
from meltr.report.numbers import Drawn
from meltr.report.page.facts import Configuration, Facts
from meltr.report.results_figure import metric_curves_figure, results_figure
from meltr.report.trained import load_trained

_DARK = {
    style.INK: "#ececec",
    style.NEUTRAL: "#d4d4d4",
    style.FAINT: "#b6b6b6",
    "#444444": "#c0c0c0",
    "#666666": "#8d949c",
    "#e3e3e3": "#343a41",
    "#ffffff": "#15181c",
    "#0072b2": "#3f9fdf",
    "#332288": "#9a8ff0",
    "#117733": "#4fb878",
}
"""Colours of a figure on paper -> on a dark page."""

_MOST_BYTES = 8 * 2**20
_PNG = b"\x89PNG\r\n\x1a\n"
_MOST_ROWS = 60


@dataclass(frozen=True)
class Picture:
    """A figure of the page.

    Args:
        title: Its heading.
        alt: What it shows, for readers who cannot see it.
        words: How to read it.
        light: Data URI, for a wide screen.
        dark: The same on a dark page; empty: as `light`.
        light_narrow: For a phone; empty: as `light`.
        dark_narrow: For a phone, on a dark page.
        header: Names of the columns of its numbers.
        rows: Its numbers.
        more: Number of rows that are not shown.
    """

    title: str
    alt: str
    words: str
    light: str
    dark: str = ""
    light_narrow: str = ""
    dark_narrow: str = ""
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    more: int = 0


@dataclass(frozen=True)
class Pictures:
    """The pictures of a page.

    Args:
        overview: Those over all configurations.
        own: Label of the configuration -> its pictures.
        skipped: Label of the configuration -> what could not be drawn, and why.
    """

    overview: Sequence[Picture]
    own: dict[str, list[Picture]]
    skipped: dict[str, list[str]]


def draw_pictures(facts: Facts, registry: Registry) -> Pictures:
    """Draw the figures of a report.

    Raises:
        UserError: If matplotlib is missing.
    """
    style.require_matplotlib()
    comparison = facts.comparison
    groups = [(each.label, each.group) for each in facts.configurations]
    overview = [
        _picture(
            "Results of every seed",
            f"{comparison.split} {comparison.metric}: "
            + "; ".join(f"{row.label} {row.mean:.4g} over {len(row.values)} seeds" for row in comparison.rows),
            "Thin lines join the same seed, which starts from the same weights and sees the same batches.",
            lambda: results_figure(comparison),
        ),
    ]
    curves = _optional(
        "Validation over epochs",
        f"Validation {comparison.metric} of {', '.join(label for label, _ in groups)} over epochs",
        "Lines are means over seeds, bands one standard deviation.",
        lambda: metric_curves_figure(groups, comparison.metric),
    )
    own: dict[str, list[Picture]] = {}
    skipped: dict[str, list[str]] = {}
    for each in facts.configurations:
        own[each.label], skipped[each.label] = _of_configuration(each, registry)
    return Pictures([*overview, *curves], own, skipped)


def _of_configuration(each: Configuration, registry: Registry) -> tuple[list[Picture], list[str]]:
    """Return the pictures of one configuration, and what could not be drawn."""
    group, run = each.group, each.group.runs[0]
    found: list[Picture] = []
    skipped: list[str] = []
    wanted: list[tuple[str, str, Callable[[], Drawn | None]]] = [
        (
            "Losses over steps",
            "Each loss has its own axis. Faint: logged values.",
            lambda: (plots.losses_figure(group), ""),
        ),
        ("Task weights", _WEIGHTS, lambda: weights_figure(group)),
    ]
    if any(line for each_run in group.runs for line in each_run.outer):
        wanted.append(("Gradient alignment", _ALIGNMENT, lambda: alignment_figure(group)))
        wanted += [
            (title, words, lambda key=key: OF_COMBINER[key][1](load_trained(run.path, registry)))  # type: ignore[misc]
            for key, title, words in _COMBINER
        ]
    for title, words, draw in wanted:
        try:
            found += _optional(title, f"{title} of {each.label}: {', '.join(run.losses)}", words, draw)
        except (UserError, plots.NotRecordedError) as error:
            skipped.append(f"{title}: {getattr(error, 'message', error)}")
    for key, title, words in _MEASURED:
        path = RunFolder(run.path).plots / f"{MEASURED[key]}.png"
        if picture := _drawn_earlier(path, title, f"{title} of {each.label}", words):
            found.append(picture)
    return found, skipped


_WEIGHTS = (
    "A task weight is the derivative of the combined loss with respect to one loss: how strongly that task pulls. "
    "1 is the plain sum."
)
_ALIGNMENT = (
    "Above 0: a step along this task's gradient also lowers the primary loss. An interval that contains 0 "
    "cannot be told from no effect."
)
_COMBINER = (
    ("3", "Response of the combiner", "One loss moves over its logged range. Only slopes count in training."),
    ("5", "Weights by embedding", "What a weight owes to the value of its loss, and what to the identity of its task."),
    ("7", "Surface of the combiner", "Beside the plain sum, in the same colours."),
)
_MEASURED = (
    ("6", "Losses of single examples", "Measured at a checkpoint on training examples."),
    ("cosines", "Cosines of the task gradients", "Negative: the two tasks pull against each other."),
    ("shares", "Share of the update", "Which part of the backbone's gradient each task makes."),
)


def _optional(title: str, alt: str, words: str, draw: Callable[[], Drawn | None]) -> list[Picture]:
    """Return the picture in a list; an empty list if there is nothing to draw."""
    with style.plotting():
        drawn = draw()
    return [] if drawn is None else [_finished(title, alt, words, drawn, draw)]


def _picture(title: str, alt: str, words: str, draw: Callable[[], Drawn]) -> Picture:
    with style.plotting():
        return _finished(title, alt, words, draw(), draw)


def _finished(title: str, alt: str, words: str, drawn: Drawn, draw: Callable[[], Drawn | None]) -> Picture:
    """Draw a figure again for a phone, and colour both for a dark page."""
    figure, table = drawn
    with style.plotting(), style.narrow_screen():
        again = draw()
    assert again is not None
    with style.plotting():
        wide, narrow = style.to_svg(figure), style.to_svg(again[0])
    rows = [*csv.reader(io.StringIO(table))]
    return Picture(
        title,
        alt,
        words,
        light=_uri(wide),
        dark=_uri(_darkened(wide)),
        light_narrow=_uri(narrow),
        dark_narrow=_uri(_darkened(narrow)),
        header=rows[0] if rows else (),
        rows=rows[1 : 1 + _MOST_ROWS],
        more=max(0, len(rows) - 1 - _MOST_ROWS),
    )


def _drawn_earlier(path: Path, title: str, alt: str, words: str) -> Picture | None:
    """Return a PNG that lies in a run folder; None if it is not there or is not a PNG."""
    try:
        content = file_bytes(path, most=_MOST_BYTES)
    except (OSError, UnreadableError):
        return None
    if not content.startswith(_PNG):
        return None
    return Picture(title, alt, words, light="data:image/png;base64," + base64.b64encode(content).decode())


def _uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def _darkened(svg: str) -> str:
    for paper, dark in _DARK.items():
        svg = svg.replace(paper, dark)
    return svg
