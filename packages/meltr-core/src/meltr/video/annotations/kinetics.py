"""Kinetics-400: clips of ten seconds from YouTube in 400 classes of human action.

Published by Kay et al., "The Kinetics Human Action Video Dataset" (2017) as ``train.csv``, ``val.csv`` (also called
``validate.csv``) with the columns ``label,youtube_id,time_start,time_end,split`` and sometimes ``is_cc``; times are in
whole seconds. Clips are named ``<youtube_id>_<start>_<end>.mp4`` with six digits each (public repository
cvdfoundation/kinetics-dataset, whose ``arrange_by_classes.py`` also gives the counts), in one folder or one folder per
class. Many clips are no longer on YouTube, so every copy lacks some: see ``--allow-missing``.

Published results are on ``val.csv``, so it is the split ``test`` here, and a validation split is taken from the
training clips. The labels of the official test set were long withheld; ``test.csv`` is not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from meltr.video.annotations.assembly import Draft, with_unique_ids
from meltr.video.annotations.layout import AnnotationFile, DatasetLayout, MediaFolder
from meltr.video.annotations.parsing import malformed, read_table, text_of
from meltr.video.corpus import Item

LAYOUTS = (
    DatasetLayout(
        dataset="kinetics400",
        summary="Kinetics-400: ten seconds of YouTube in 400 classes of human action (Kay et al., 2017).",
        tasks=("action",),
        files=(
            AnnotationFile("train", ("train.csv", "kinetics_train.csv"), "training clips and their classes"),
            AnnotationFile(
                "test", ("val.csv", "validate.csv", "kinetics_val.csv"), "validation clips, used for results"
            ),
        ),
        media=MediaFolder(
            ("videos", "train", "val", "train_256", "val_256", "."),
            "-3B32lodo2M_000059_000069.mp4, with or without one folder per class",
            266_440,
        ),
        unit="clips",
        published={"train": 246_534, "test": 19_906},
        homepage="https://github.com/cvdfoundation/kinetics-dataset",
        folders=(".", "annotations"),
    ),
)


def draft(layout: DatasetLayout, task: str, files: Mapping[str, Path]) -> Draft:
    """Return the clips of both splits; the classes are those of the training split, in alphabetical order.

    Raises:
        UserError: If a file is malformed, or a class occurs only in the test split.
    """
    stems: dict[str, tuple[str, ...]] = {}
    read = {split: _clips(files[split], stems) for split in ("train", "test")}
    classes = tuple(sorted({str(item.label) for item in read["train"]}))
    known = frozenset(classes)
    unknown = next((item for item in read["test"] if item.label not in known), None)
    if unknown is not None:
        raise malformed(files["test"], f"class {unknown.label!r} of {unknown.id} is not in {files['train'].name}.")
    splits, notes = with_unique_ids(read)
    return Draft(splits, classes, notes, stems=stems)


def _clips(path: Path, stems: dict[str, tuple[str, ...]]) -> list[Item]:
    items = []
    for line, row in read_table(path, ("label", "youtube_id", "time_start", "time_end")):
        where = f"{path}, line {line}"
        name = text_of(row, "youtube_id", where)
        start, end = (_seconds(row, column, where) for column in ("time_start", "time_end"))
        key = f"{name}_{start:06d}_{end:06d}"
        stems[key] = (key, f"{name}_{start}_{end}")
        items.append(Item(media=key, id=key, label=text_of(row, "label", where)))
    return items


def _seconds(row: Mapping[str, str], column: str, where: str) -> int:
    try:
        number = int(float(row[column]))
        if not 0 <= number < 10**6:
            raise ValueError
        return number
    except (ValueError, OverflowError):
        raise malformed(where, f"{column} {row[column]!r:.60} is not a number of seconds.")
