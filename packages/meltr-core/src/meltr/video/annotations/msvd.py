"""MSVD-QA: 50,505 questions on the 1,970 clips of MSVD, each answered with one word of the 1,000 most frequent.

Published by Xu et al., "Video Question Answering via Gradually Refined Attention over Appearance and Motion" (ACM MM
2017) as ``train_qa.json``, ``val_qa.json`` and ``test_qa.json``, lists of objects with ``id``, ``question``, ``answer``
and ``video_id``, a number N (public repository xudejing/video-question-answering, ``preprocess_msvdqa.py``, which also
takes the 1,000 most frequent training answers). ``youtube_mapping.txt`` maps numbers to clips in lines such as
``-4wsuPCjDBc_5_15 vid1``. The clips (Chen and Dolan, ACL 2011) are named ``-4wsuPCjDBc_5_15.avi`` or, in the QA
archive, ``vid1.avi``. The key of a clip is its YouTube name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from meltr.video.annotations.assembly import Draft, most_common_answers, outside_note, with_unique_ids
from meltr.video.annotations.layout import AnnotationFile, DatasetLayout, MediaFolder
from meltr.video.annotations.parsing import malformed, read_json, read_list, records, text_of
from meltr.video.corpus import Item

ANSWERS = 1000
"""Size of the vocabulary."""

LAYOUTS = (
    DatasetLayout(
        dataset="msvd",
        summary="MSVD-QA: 50,505 questions on 1,970 YouTube clips, 1,000 answers (Xu et al., 2017).",
        tasks=("qa",),
        files=(
            AnnotationFile("train", ("train_qa.json",), "training questions"),
            AnnotationFile("validation", ("val_qa.json",), "validation questions"),
            AnnotationFile("test", ("test_qa.json",), "test questions"),
            AnnotationFile("mapping", ("youtube_mapping.txt",), "names of the clips: '-4wsuPCjDBc_5_15 vid1'"),
        ),
        media=MediaFolder(("videos", "YouTubeClips", "video", "."), "-4wsuPCjDBc_5_15.avi (or vid1.avi)", 1970),
        unit="questions",
        published={"train": 30_933, "validation": 6_415, "test": 13_157},
        homepage="https://github.com/xudejing/video-question-answering (questions) and "
        "https://www.cs.utexas.edu/users/ml/clamp/videoDescription (clips)",
        folders=(".", "MSVD-QA"),
    ),
)


def draft(layout: DatasetLayout, task: str, files: Mapping[str, Path]) -> Draft:
    """Return the questions of the three splits.

    Raises:
        UserError: If a file is malformed or names a clip that is not in the mapping.
    """
    names = _mapping(files["mapping"])
    read = {split: _questions(files[split], names) for split in ("train", "validation", "test")}
    splits, notes = with_unique_ids(read)
    answers = most_common_answers(splits["train"], ANSWERS)
    stems = {name: (name, number) for number, name in names.items()}
    return Draft(splits, answers, notes + outside_note(splits, answers), stems=stems)


def _mapping(path: Path) -> dict[str, str]:
    """Return ``vidN`` -> YouTube name."""
    names = {}
    for line in read_list(path):
        words = line.split()
        if len(words) != 2:
            raise malformed(path, f"{line!r:.60} is not a clip and its number, as in '-4wsuPCjDBc_5_15 vid1'.")
        names[words[1]] = words[0]
    return names


def _questions(path: Path, names: Mapping[str, str]) -> list[Item]:
    items = []
    for where, record in records(read_json(path), path):
        number = f"vid{text_of(record, 'video_id', where)}"
        if number not in names:
            raise malformed(where, f"youtube_mapping.txt has no clip {number}.")
        items.append(
            Item(
                media=names[number],
                id=text_of(record, "id", where),
                question=text_of(record, "question", where),
                answer=text_of(record, "answer", where),
            )
        )
    return items
