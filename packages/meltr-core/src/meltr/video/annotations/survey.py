"""What of a data set is there and what is missing: ``meltr data check``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from meltr.errors import UserError
from meltr.video.annotations import layout_for, reader
from meltr.video.annotations.assembly import Draft, find_media
from meltr.video.annotations.finding import index_by_stem
from meltr.video.annotations.layout import AnnotationFile, DatasetLayout, require_root


@dataclass(frozen=True)
class SplitCount:
    """How many items a split has.

    Args:
        name: The split.
        items: In the annotations.
        usable: Of them, with a video.
        published: As published; None: unknown.
    """

    name: str
    items: int
    usable: int
    published: int | None


@dataclass(frozen=True)
class Survey:
    """What was found.

    Args:
        layout: The data set.
        task: The task it was read for.
        root: Its folder.
        files: Annotation file -> where it is; None: missing.
        splits: The splits, where the annotations can be read.
        media: Videos that are there: of those that the annotations name, or of any name while they cannot be read.
        missing: Videos that the annotations name and that are not there.
        problem: What is wrong with the annotations, with what to do; None: nothing.
        notes: Lines worth knowing.
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

    @property
    def readable(self) -> bool:
        """True if all needed annotations are there and well-formed."""
        return self.problem is None and all(path is not None or not each.needed for each, path in self.files)

    @property
    def complete(self) -> bool:
        """True if a run could start: annotations, a training split, no split empty, every video."""
        full = {split.name for split in self.splits if split.items}
        return self.readable and not self.missing and "train" in full and len(full) == len(self.splits)


def survey(dataset: str, task: str | None, root: Path | None) -> Survey:
    """Look at the folder of a data set; nothing that is missing or malformed in it is an error here.

    Args:
        dataset: Its name.
        task: What it is wanted for; None: its first task.
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
    return Survey(
        found.layout,
        found.task,
        found.root,
        found.files,
        splits=splits,
        media=len(media),
        missing=tuple(key for key in draft.media_names() if key not in media),
        notes=draft.notes,
    )
