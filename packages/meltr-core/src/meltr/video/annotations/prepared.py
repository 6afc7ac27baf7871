"""Data sets in the prepared files of a published code: annotations, and a file for the videos. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from meltr.video.annotations.layout import DatasetLayout


@dataclass(frozen=True)
class PreparedLayout(DatasetLayout):
    """Prepared files of one data set.

    Args:
        stands_for_videos: Role of the file that stands for the videos, such as ``frames`` or ``features``.
    """

    stands_for_videos: str = "frames"

    def media_place(self, root: Path) -> str:
        """Return where what is missing belongs."""
        names = next(each.names for each in self.files if each.role == self.stands_for_videos)
        place = f"Their {self.stands_for_videos} belong in {' or '.join(names)} in {root}."
        return f"{place} Get it from {self.homepage}"

    def advice(self, root: Path | None = None) -> str:
        """Return which file goes where, and the way without."""
        return f"{self.places(root)}\nWithout any files: --sample."


def layout_of(layouts: Sequence[PreparedLayout], dataset: str, task: str | None = None) -> PreparedLayout | None:
    """Return the layout of a data set, if there are prepared files of it.

    Args:
        layouts: Those that there are.
        dataset: Name of the data set.
        task: What it is wanted for; None: anything.
    """
    fitting = (each for each in layouts if each.dataset == dataset and (task is None or task in each.tasks))
    return next(fitting, None)


def find_files(
    layouts: Sequence[PreparedLayout], dataset: str, task: str, root: Path | None
) -> tuple[PreparedLayout, dict[str, Path]] | None:
    """Return the layout of a data set, and role -> file; None if there are none, or one that is needed is absent.

    Args:
        layouts: Those that there are.
        dataset: Name of the data set.
        task: What it is wanted for.
        root: The folder of the data set, or one with a folder of each (``--data-root``); None: it was not given.
    """
    layout = layout_of(layouts, dataset, task)
    if layout is None or root is None or not root.is_dir():
        return None
    files = layout.find(root)
    return None if any(each.needed and each.role not in files for each in layout.files) else (layout, files)


def expected_files(layouts: Sequence[PreparedLayout], dataset: str, task: str) -> str:
    """Return which prepared files there could be, a line each; empty where there are none of `dataset` and `task`."""
    layout = layout_of(layouts, dataset, task)
    return "" if layout is None else layout.text()
