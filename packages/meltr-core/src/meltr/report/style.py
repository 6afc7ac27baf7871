"""Style of the plots: a colour-blind safe palette, plain axes, and writing figures to files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meltr.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "pdf", "svg")

# Okabe and Ito's palette without its yellow, which is too light for a line on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
NEUTRAL = "#333333"
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


def look(index: int) -> dict[str, Any]:
    """Return colour, dashes and marker of task `index`; two tasks differ in at least one of them."""
    return {
        "color": PALETTE[index % len(PALETTE)],
        "linestyle": _DASHES[index // len(PALETTE) % len(_DASHES)],
        "marker": _MARKERS[index % len(_MARKERS)],
    }


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

    columns = count if count <= 3 else (2 if count == 4 else 3)
    rows = -(-count // columns)
    width = {1: 6.4, 2: 8.4, 3: 11.0}[columns]
    height = 3.6 if count == 1 else height
    figure = Figure(figsize=(width, rows * height + 0.5), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


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
