"""Style of the plots: a colour-blind safe palette, plain axes, and writing figures to files."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meltr.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "pdf", "svg")

# Okabe and Ito's palette without its yellow, which is too light for a line on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK = "#1a1a1a"
# Tol's muted palette for runs: no run has the colour of a task.
RUN_PALETTE = ("#332288", "#CC6677", "#117733", "#999933", "#AA4499", "#44AA99")
NEUTRAL = "#333333"
FAINT = "#555555"
_DASHES = ("-", "--", ":", "-.")
_MARKERS = "osD^vPX*"

_SETTINGS: Any = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-4, 5),
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.8,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "meltr",
    "pdf.fonttype": 42,
}


def require_matplotlib() -> None:
    """Check that plots can be drawn.

    Raises:
        UserError: If matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError(
            "Plots need matplotlib, which is not installed", "Install it with: pip install 'meltr-core[plots]'"
        ) from None


def check_formats(formats: Sequence[str]) -> None:
    """Check that every format is known.

    Raises:
        UserError: If a format is unknown.
    """
    for name in formats:
        if name not in FORMATS:
            raise UserError(f"Unknown format {name!r}", did_you_mean(name, FORMATS))


@contextmanager
def plotting() -> Iterator[None]:
    """Apply the style inside the block, without changing matplotlib's global settings."""
    import matplotlib as mpl

    with mpl.rc_context(_SETTINGS):
        yield


_narrow: ContextVar[bool] = ContextVar("narrow", default=False)


@contextmanager
def narrow_screen() -> Iterator[None]:
    """Lay figures out for a phone inside the block: one column of panels, legends below."""
    token = _narrow.set(True)
    try:
        yield
    finally:
        _narrow.reset(token)


def is_narrow() -> bool:
    """Return whether figures are laid out for a phone."""
    return _narrow.get()


NARROW_WIDTH = 4.2
"""Width of a figure for a phone in inches."""


def resize(figure: Figure, width: float, height: float) -> None:
    """Set the size of a figure in inches; on a phone the width is that of the screen."""
    figure.set_size_inches(NARROW_WIDTH if is_narrow() else width, height)


def look(index: int) -> dict[str, Any]:
    """Return colour, dashes and marker of task `index`; two tasks differ in at least one of them."""
    return {
        "color": PALETTE[index % len(PALETTE)],
        "linestyle": _DASHES[index // len(PALETTE) % len(_DASHES)],
        "marker": _MARKERS[index % len(_MARKERS)],
    }


def run_look(index: int) -> dict[str, Any]:
    """Return colour, dashes and marker of run `index`; its colour is not that of any task."""
    return look(index) | {"color": RUN_PALETTE[index % len(RUN_PALETTE)]}


def whole_numbers(axis: Axes) -> None:
    """Put the ticks of the x axis at whole numbers, unless it spans fewer than three."""
    from matplotlib.ticker import MaxNLocator

    low, high = axis.get_xlim()
    if high - low >= 3:
        axis.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10]))


def panels(count: int, *, height: float = 2.5) -> tuple[Figure, list[Axes]]:
    """Return a figure with `count` panels in rows of at most three.

    Args:
        count: Number of panels, at least 1.
        height: Height of a row in inches.
    """
    from matplotlib.figure import Figure

    columns = 1 if is_narrow() else count if count <= 3 else (2 if count == 4 else 3)
    rows = -(-count // columns)
    width = NARROW_WIDTH if is_narrow() else {1: 6.4, 2: 8.4, 3: 11.0}[columns]
    height = 3.6 if count == 1 else height
    figure = Figure(figsize=(width, rows * height + 0.5), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def caption(figure: Figure, *texts: str) -> None:
    """Write the name of the run and what the figure shows above it; empty texts are skipped."""
    text = "  |  ".join(part for part in texts if part)
    figure.suptitle(text, fontsize="small", color=FAINT, x=0.01, ha="left", wrap=True)


def save(figure: Figure, folder: Path, *, name: str, formats: Sequence[str]) -> list[Path]:
    """Write `figure` as ``folder/name.<format>`` and return the paths; the same data gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for suffix in formats:
        path = folder / f"{name}.{suffix}"
        undated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(suffix)
        figure.savefig(path, dpi=160, metadata=undated)
        paths.append(path)
    return paths


def to_svg(figure: Figure) -> str:
    """Return `figure` as SVG; the same data gives the same text."""
    content = io.StringIO()
    figure.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()
