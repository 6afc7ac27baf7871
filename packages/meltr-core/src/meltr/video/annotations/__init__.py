"""Readers of published annotations, one data set per file, and of the user's manifest. Imports no torch.

A reader is a module with ``LAYOUTS`` and ``draft(layout, task, files)``. ``LAYOUTS`` is one or more
`layout.DatasetLayout`: which file goes where, and the number of items. ``draft`` turns the annotation files into
examples. Finding the videos, checking them and skipping examples is done here for all readers. A new reader is a new
file and a line in `READERS`.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Protocol, cast

from meltr.errors import UserError, did_you_mean
from meltr.video.annotations.assembly import Draft, assemble
from meltr.video.annotations.layout import DatasetLayout, require_files, require_root
from meltr.video.corpus import Corpus

READERS = {
    "msvd": "msvd",
    "tgif-action": "tgif",
    "tgif-transition": "tgif",
    "tgif-frame": "tgif",
    "msrvtt-7k": "msrvtt",
    "msrvtt-9k": "msrvtt",
    "msrvtt": "msrvtt_qa",
    "msrvtt-full": "msrvtt_full",
    "youcook2": "youcook2",
    "cmu-mosi": "cmu_mosi",
    "kinetics400": "kinetics",
    "manifest": "manifest",
}
"""Data set -> the module of this package that reads it, imported on first use."""


class Reader(Protocol):
    """Interface of a reader module of this package."""

    LAYOUTS: tuple[DatasetLayout, ...]

    def draft(self, layout: DatasetLayout, task: str, files: dict[str, Path]) -> Draft:
        """Return the content of the annotation files (role -> path)."""


def reader(dataset: str) -> Reader:
    """Return the module that reads `dataset`; UserError if there is none."""
    if dataset not in READERS:
        raise UserError(f"meltr has no reader for data set {dataset!r}", did_you_mean(dataset, READERS))
    return cast(Reader, importlib.import_module(f"{__name__}.{READERS[dataset]}"))


def layout(dataset: str) -> DatasetLayout:
    """Return the layout of `dataset` on disk; UserError if there is no reader for it."""
    return next(each for each in reader(dataset).LAYOUTS if each.dataset == dataset)


def layout_for(dataset: str, task: str | None) -> tuple[DatasetLayout, str]:
    """Return the layout of `dataset` and the task (default: its first one); UserError if it has no such annotations."""
    found = layout(dataset)
    if task is not None and task not in found.tasks:
        raise UserError(f"{dataset} has no annotations for task {task!r}", did_you_mean(task, found.tasks))
    return found, task or found.tasks[0]


def read(dataset: str, task: str, root: Path | None, *, allow_missing: bool = False) -> Corpus:
    """Read a data set in its published form.

    Args:
        dataset: Its name, one of `READERS`.
        task: The task to read it for.
        root: Its folder (``--data-root``), or the file of a manifest. None: not given.
        allow_missing: Skip examples whose video is missing, instead of raising an error.

    Returns:
        All examples of all published splits, in the order of the files. Splitting off a validation set and limits are
        left to the caller (`meltr.data.splits`).

    Raises:
        UserError: If there is no such reader or task, a file is missing or malformed, a split is empty, or videos are
            missing. The hint states which file goes where.
    """
    found, task = layout_for(dataset, task)
    root = require_root(found, root)
    files = require_files(found, root)
    draft = reader(dataset).draft(found, task, files)
    return assemble(draft, found, task=task, root=root, allow_missing=allow_missing)
