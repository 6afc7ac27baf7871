"""MSR-VTT for captioning: all 10,000 web clips with 20 captions each, in the authors' split.

Captions (Xu, Mei, Yao, Rui, CVPR 2016): ``MSRVTT_data.json``, or the challenge's own ``train_val_videodatainfo.json``
and ``test_videodatainfo.json``: objects with a list ``videos`` (``video_id``, ``split``: ``train``, ``validate``,
``test``) and a list ``sentences`` (``video_id``, ``caption``). If the videos have no ``split``, their order counts:
6,513 for training, 497 for validation, 2,990 for testing. Some files also hold the spoken words of a clip
(``transcript``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from meltr.errors import did_you_mean
from meltr.video.annotations import msrvtt
from meltr.video.annotations.assembly import Draft, first
from meltr.video.annotations.layout import AnnotationFile, DatasetLayout
from meltr.video.annotations.parsing import malformed, read_json, records, text_of
from meltr.video.corpus import Item

PARTS = {"train": 6_513, "validation": 497, "test": 2_990}
"""Split -> number of clips, in this order."""

SPLITS = {"train": "train", "validate": "validation", "validation": "validation", "val": "validation", "test": "test"}
"""Value of ``split`` of a video -> split."""

LAYOUTS = (
    DatasetLayout(
        dataset="msrvtt-full",
        summary="MSR-VTT for captions: 6,513 clips for training, 497 for validation, 2,990 for testing.",
        tasks=("captioning",),
        files=(
            AnnotationFile("captions", ("MSRVTT_data.json", "train_val_videodatainfo.json"), "clips and all captions"),
            AnnotationFile(
                "more captions", ("test_videodatainfo.json",), "the rest, beside train_val_videodatainfo.json", False
            ),
        ),
        media=msrvtt.LAYOUTS[0].media,
        unit="clips",
        published=PARTS,
        homepage=msrvtt.LAYOUTS[0].homepage,
        folders=msrvtt.LAYOUTS[0].folders,
    ),
)


def draft(layout: DatasetLayout, task: str, files: Mapping[str, Path]) -> Draft:
    """Return the clips of the three splits with all their captions.

    Raises:
        UserError: If a file is malformed, a split is unknown, or a clip has no caption.
    """
    paths = [files["captions"]]
    if paths[0].name == "train_val_videodatainfo.json" and "more captions" in files:
        paths.append(files["more captions"])
    captions: dict[str, list[str]] = {}
    videos: list[tuple[str, Mapping[str, Any]]] = []
    for path in paths:
        content = read_json(path)
        for name in ("videos", "sentences"):
            if not isinstance(content, dict) or name not in content:
                raise malformed(path, f"no list {name!r} in it.")
        videos += records(content["videos"], f"{path}, videos")
        for where, record in records(content["sentences"], f"{path}, sentences"):
            captions.setdefault(text_of(record, "video_id", where), []).append(text_of(record, "caption", where))
    names = [text_of(record, "video_id", where) for where, record in videos]
    without = [name for name in names if name not in captions]
    if without:
        raise malformed(paths[0], f"no caption for {len(without):,} of {len(names):,} clips: {first(without)}")
    splits: dict[str, list[Item]] = {split: [] for split in PARTS}
    for (name, split), (where, record) in zip(_splits(videos, names, paths[0]), videos, strict=True):
        said = text_of(record, "transcript", where) if record.get("transcript") else None
        splits[split].append(Item(media=name, id=name, captions=tuple(captions[name]), transcript=said))
    return Draft({split: tuple(items) for split, items in splits.items() if items})


def _splits(videos: list[tuple[str, Mapping[str, Any]]], names: list[str], path: Path) -> list[tuple[str, str]]:
    """Return the name and the split of every clip: as given in the file, or by its position."""
    if not any("split" in record for _, record in videos):
        if len(names) != sum(PARTS.values()):
            whole = sum(PARTS.values())
            raise malformed(
                path,
                f"{len(names):,} videos without a split; their order determines it only for all {whole:,}.",
            )
        places = [split for split, count in PARTS.items() for _ in range(count)]
        return list(zip(names, places, strict=True))
    found = []
    for name, (where, record) in zip(names, videos, strict=True):
        said = text_of(record, "split", where)
        if said not in SPLITS:
            raise malformed(where, f"unknown split {said!r}.", did_you_mean(said, SPLITS))
        found.append((name, SPLITS[said]))
    return found
