"""Data sets in the prepared files of published code: annotations, and a file in place of the videos. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from meltr.video.annotations.layout import DatasetLayout


@dataclass(frozen=True)
class PreparedLayout(DatasetLayout):
    """Prepared files of one data set.

    Args:
        stands_for_videos: Role of the file that replaces the videos, such as ``frames`` or ``features``.
    """

    stands_for_videos: str = "frames"

    def media_place(self, root: Path) -> str:
        """Return where missing files belong."""
        names = next(each.names for each in self.files if each.role == self.stands_for_videos)
        place = f"Their {self.stands_for_videos} belong in {' or '.join(names)} in {root}."
        return f"{place} Get it from {self.homepage}"

    def advice(self, root: Path | None = None) -> str:
        """Return which file goes where, and how to run without files."""
        return f"{self.places(root)}\nTo run without any files: --sample."


def layout_of(layouts: Sequence[PreparedLayout], dataset: str, task: str | None = None) -> PreparedLayout | None:
    """Return the layout of the prepared files of a data set; None if there are none.

    Args:
        layouts: All layouts.
        dataset: Name of the data set.
        task: The task that must be supported; None: any.
    """
    fitting = (each for each in layouts if each.dataset == dataset and (task is None or task in each.tasks))
    return next(fitting, None)


def find_files(
    layouts: Sequence[PreparedLayout], dataset: str, task: str, root: Path | None
) -> tuple[PreparedLayout, dict[str, Path]] | None:
    """Return the layout of a data set, and role -> file; None if it has no layout, or a required file is missing.

    Args:
        layouts: All layouts.
        dataset: Name of the data set.
        task: The task that must be supported.
        root: The folder of the data set, or the parent of several data sets (``--data-root``); None: not given.
    """
    layout = layout_of(layouts, dataset, task)
    if layout is None or root is None or not root.is_dir():
        return None
    files = layout.find(root)
    return None if any(each.needed and each.role not in files for each in layout.files) else (layout, files)


def expected_files(layouts: Sequence[PreparedLayout], dataset: str, task: str) -> str:
    """Return the possible prepared files, one line each; empty if there are none for `dataset` and `task`."""
    layout = layout_of(layouts, dataset, task)
    return "" if layout is None else layout.text()
