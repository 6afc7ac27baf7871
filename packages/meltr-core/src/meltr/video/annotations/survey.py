"""Check which files of a data set exist and which are missing: ``meltr data check``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from meltr.errors import UserError
from meltr.video.annotations import layout_for, reader
from meltr.video.annotations.assembly import Draft, find_media
from meltr.video.annotations.finding import index_by_stem, other_endings
from meltr.video.annotations.layout import AnnotationFile, DatasetLayout, require_root


@dataclass(frozen=True)
class SplitCount:
    """Number of items of a split.

    Args:
        name: The split.
        items: Items in the annotations.
        usable: Items whose video exists.
        published: Published number of items; None: unknown.
    """

    name: str
    items: int
    usable: int
    published: int | None


@dataclass(frozen=True)
class Survey:
    """Result of a check.

    Args:
        layout: The layout of the data set.
        task: The task it was read for.
        root: Its folder.
        files: Annotation file -> its path; None: missing.
        splits: The splits, if the annotations can be read.
        media: Number of videos found: those named in the annotations, or all if the annotations cannot be read.
        missing: Videos that are named in the annotations but do not exist.
        problem: Error in the annotations; None: no error.
        notes: Remarks for the user.
        elsewhere: A sentence about files of missing videos whose endings do not count.
    """

    layout: DatasetLayout
    task: str
    root: Path
    files: tuple[tuple[AnnotationFile, Path | None], ...]
    splits: tuple[SplitCount, ...] = ()
    media: int = 0
    missing: tuple[str, ...] = ()
    problem: UserError | None = None
    notes: tuple[str, ...] = field(default=())
    elsewhere: str = ""

    @property
    def readable(self) -> bool:
        """True if all required annotations exist and are well-formed."""
        return self.problem is None and all(path is not None or not each.needed for each, path in self.files)

    @property
    def complete(self) -> bool:
        """True if a run could start: readable annotations, a training split, no empty split, no missing video."""
        full = {split.name for split in self.splits if split.items}
        return self.readable and not self.missing and "train" in full and len(full) == len(self.splits)


def survey(dataset: str, task: str | None, root: Path | None) -> Survey:
    """Check the folder of a data set; missing or malformed files are reported, not raised.

    Args:
        dataset: Its name.
        task: The task to read it for; None: its first task.
        root: Its folder.

    Raises:
        UserError: If there is no reader for the data set or task, or no such folder.
    """
    layout, task = layout_for(dataset, task)
    root = require_root(layout, root)
    files = layout.find(root)
    state = tuple((each, files.get(each.role)) for each in layout.files)
    found = Survey(layout, task, root, state)
    problem = None
    if found.readable:
        try:
            return _counted(found, reader(dataset).draft(layout, task, files))
        except UserError as error:
            problem = error
    there = 0 if layout.media is None else len(index_by_stem(root, layout.media.folders))
    return Survey(layout, task, root, state, media=there, problem=problem)


def _counted(found: Survey, draft: Draft) -> Survey:
    media = find_media(draft, found.layout, found.root)
    published = found.layout.published
    splits = tuple(
        SplitCount(name, len(items), sum(item.media in media for item in items), published.get(name))
        for name, items in draft.splits.items()
    )
    missing = tuple(key for key in draft.media_names() if key not in media)
    folders = () if found.layout.media is None else found.layout.media.folders
    return Survey(
        found.layout,
        found.task,
        found.root,
        found.files,
        splits=splits,
        media=len(media),
        missing=missing,
        notes=draft.notes,
        elsewhere=other_endings(found.root, folders, missing) if missing else "",
    )
