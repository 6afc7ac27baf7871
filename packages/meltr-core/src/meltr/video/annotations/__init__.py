"""Readers of published annotations, one data set a file, and of the user's manifest. Imports no torch.

A reader is a module with ``LAYOUTS`` (one or more `layout.DatasetLayout`: which file goes where and how
many items there are) and ``draft(layout, task, files)``, which turns the annotation files into examples. Looking for
the videos, checking and leaving out is done here, for all alike. A new reader is a file and its line in `READERS`.
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
"""Data set -> module of this package that reads it, imported when it is needed."""


class Reader(Protocol):
    """What a module of this package offers."""

    LAYOUTS: tuple[DatasetLayout, ...]

    def draft(self, layout: DatasetLayout, task: str, files: dict[str, Path]) -> Draft:
        """Return what the annotation files (role -> path) say."""


def reader(dataset: str) -> Reader:
    """Return the module that reads `dataset`; UserError if there is none."""
    if dataset not in READERS:
        raise UserError(f"meltr has no reader for data set {dataset!r}", did_you_mean(dataset, READERS))
    return cast(Reader, importlib.import_module(f"{__name__}.{READERS[dataset]}"))


def layout(dataset: str) -> DatasetLayout:
    """Return what `dataset` looks like on disk; UserError if there is no reader for it."""
    return next(each for each in reader(dataset).LAYOUTS if each.dataset == dataset)


def layout_for(dataset: str, task: str | None) -> tuple[DatasetLayout, str]:
    """Return the layout of `dataset` and the task (default: its first); UserError if it has no such annotations."""
    found = layout(dataset)
    if task is not None and task not in found.tasks:
        raise UserError(f"{dataset} has no annotations for task {task!r}", did_you_mean(task, found.tasks))
    return found, task or found.tasks[0]


def read(dataset: str, task: str, root: Path | None, *, allow_missing: bool = False) -> Corpus:
    """Read a data set as it is published.

    Args:
        dataset: Its name, one of `READERS`.
        task: What it is wanted for.
        root: Its folder (``--data-root``); a manifest may be named itself. None: it was not given.
        allow_missing: Leave out examples whose video is not there, instead of refusing.

    Returns:
        All examples of all splits that the data set has, in the order of the files. What to cut from training where
        there is no validation split, and limits, are for the caller (`meltr.data.splits`).

    Raises:
        UserError: If there is no such reader or task, a file is missing or malformed, a split is empty, or videos are
            missing. The hint says which file goes where.
    """
    found, task = layout_for(dataset, task)
    root = require_root(found, root)
    files = require_files(found, root)
    draft = reader(dataset).draft(found, task, files)
    return assemble(draft, found, task=task, root=root, allow_missing=allow_missing)
