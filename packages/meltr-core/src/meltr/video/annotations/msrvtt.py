"""MSR-VTT for retrieval: 10,000 web clips with 20 captions each; 7,010 or 9,000 for training, 1,000 for testing.

Captions (Xu, Mei, Yao, Rui, CVPR 2016): ``MSRVTT_data.json`` (releases of the public repository ArrowLuo/CLIP4Clip), an
object whose list ``sentences`` has ``video_id`` and ``caption``; or the challenge's own two files in the same format,
``train_val_videodatainfo.json`` and ``test_videodatainfo.json``; or ``MSR_VTT.json`` (public repositories
m-bain/frozen-in-time and mlvlab/MELTR), an object whose list ``annotations`` has ``image_id`` and ``caption``.

Splits: ``MSRVTT_train.7k.csv`` or ``MSRVTT_train.9k.csv`` (column ``video_id``), or a list with one id per line
(``train_list_7k.txt``, ``train_list_9k.txt``, ``train_list_jsfusion.txt``). The 7k list is the official train and
validate parts together (6,513 + 497), the 9k list all clips except the test clips. The test set, known as JSFusion or
1k-A: ``MSRVTT_JSFUSION_test.csv`` (``key,vid_key,video_id,sentence``), or ``val_list_jsfusion.txt`` with
``jsfusion_val_caption_idx.pkl``, which gives the caption of each clip that counts. Neither has a validation split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from meltr.video.annotations.assembly import Draft, first, one_item_a_medium, with_unique_ids
from meltr.video.annotations.layout import AnnotationFile, DatasetLayout, MediaFolder
from meltr.video.annotations.parsing import malformed, read_json, read_list, read_table, records, text_of
from meltr.video.corpus import Item

CAPTION_FILES = ("MSRVTT_data.json", "MSR_VTT.json", "train_val_videodatainfo.json")


def _layout(dataset: str, summary: str, *, lists: tuple[str, ...], train: int) -> DatasetLayout:
    return DatasetLayout(
        dataset=dataset,
        summary=summary,
        tasks=("retrieval",),
        files=(
            AnnotationFile("captions", CAPTION_FILES, "all captions"),
            AnnotationFile(
                "more captions", ("test_videodatainfo.json",), "the rest, beside train_val_videodatainfo.json", False
            ),
            AnnotationFile("train", lists, f"names of the {train:,} training clips"),
            AnnotationFile(
                "test", ("MSRVTT_JSFUSION_test.csv", "val_list_jsfusion.txt"), "the 1,000 test clips, one caption each"
            ),
            AnnotationFile(
                "test captions",
                ("jsfusion_val_caption_idx.pkl",),
                "which captions, beside val_list_jsfusion.txt",
                False,
            ),
        ),
        media=MediaFolder(("videos", "TrainValVideo", "TestVideo", "."), "video0.mp4 (at any depth)", 10_000),
        unit="clips",
        published={"train": train, "test": 1_000},
        homepage="https://github.com/ArrowLuo/CLIP4Clip (captions and lists) and "
        "https://github.com/m-bain/frozen-in-time (clips)",
        folders=(".", "msrvtt_data", "annotation", "annotations", "high-quality/structured-symlinks"),
    )


LAYOUTS = (
    _layout(
        "msrvtt-7k",
        "MSR-VTT: 7,010 clips for training, the 1,000 of JSFusion (1k-A) for testing.",
        lists=("MSRVTT_train.7k.csv", "train_list_7k.txt"),
        train=7_010,
    ),
    _layout(
        "msrvtt-9k",
        "MSR-VTT: 9,000 clips for training, the 1,000 of JSFusion (1k-A) for testing.",
        lists=("MSRVTT_train.9k.csv", "train_list_9k.txt", "train_list_jsfusion.txt"),
        train=9_000,
    ),
)


def draft(layout: DatasetLayout, task: str, files: Mapping[str, Path]) -> Draft:
    """Return the training clips with all their captions and the test clips with one caption.

    Raises:
        UserError: If a file is malformed, or a clip of a list has no caption.
    """
    captions = _captions(files["captions"])
    if files["captions"].name == "train_val_videodatainfo.json" and "more captions" in files:
        captions |= _captions(files["more captions"])
    names = _names(files["train"])
    without = [name for name in names if name not in captions]
    if without:
        raise malformed(
            files["captions"],
            f"no caption for {len(without):,} of the {len(names):,} clips of {files['train'].name}: {first(without)}",
            "Use MSRVTT_data.json, which has the captions of all clips.",
        )
    train = [Item(media=name, id=name, captions=tuple(captions[name])) for name in dict.fromkeys(names)]
    splits, notes = with_unique_ids({"train": train, "test": _test(files, captions)})
    return Draft(splits, notes=notes)


def _captions(path: Path) -> dict[str, list[str]]:
    """Return clip -> captions in the order of the file."""
    content = read_json(path)
    listed, key = ("annotations", "image_id") if path.name == "MSR_VTT.json" else ("sentences", "video_id")
    if not isinstance(content, dict) or listed not in content:
        raise malformed(path, f"no list {listed!r} of captions in it.")
    found: dict[str, list[str]] = {}
    for where, record in records(content[listed], f"{path}, {listed}"):
        found.setdefault(text_of(record, key, where), []).append(text_of(record, "caption", where))
    return found


def _names(path: Path) -> list[str]:
    if path.suffix == ".csv":
        return [text_of(row, "video_id", f"{path}, line {line}") for line, row in read_table(path, ("video_id",))]
    return read_list(path)


def _test(files: Mapping[str, Path], captions: Mapping[str, Sequence[str]]) -> tuple[Item, ...]:
    path = files["test"]
    if path.suffix != ".csv":
        return _by_index(path, files.get("test captions"), captions)
    items = []
    for line, row in read_table(path, ("key", "video_id", "sentence")):
        where = f"{path}, line {line}"
        caption = text_of(row, "sentence", where)
        items.append(Item(media=text_of(row, "video_id", where), id=row["key"], captions=(caption,)))
    return one_item_a_medium(items)


def _by_index(path: Path, index_file: Path | None, captions: Mapping[str, Sequence[str]]) -> tuple[Item, ...]:
    if index_file is None:
        raise malformed(
            path, "jsfusion_val_caption_idx.pkl is not beside it.", "Put it there, or use MSRVTT_JSFUSION_test.csv."
        )
    from meltr.data.safe_pickle import load_pickle  # imports numpy, which `meltr list` does not need

    index: Any = load_pickle(index_file)
    items = []
    for name in read_list(path):
        number = index.get(name) if isinstance(index, dict) else None
        if name not in captions or number is None or not 0 <= int(number) < len(captions[name]):
            raise malformed(index_file, f"caption {number} of {name}: there are {len(captions.get(name, ()))}.")
        items.append(Item(media=name, id=name, captions=(captions[name][int(number)],)))
    return tuple(items)
