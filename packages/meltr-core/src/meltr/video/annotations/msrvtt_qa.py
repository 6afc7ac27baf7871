"""MSRVTT-QA: 243,680 questions on the 10,000 clips of MSR-VTT, each answered with one word.

Published by Xu et al., "Video Question Answering via Gradually Refined Attention over Appearance and Motion" (ACM MM
2017) as ``train_qa.json``, ``val_qa.json`` and ``test_qa.json``, lists of objects with ``id``, ``question``,
``answer``, ``category_id`` and ``video_id``, a number N: the clip is ``videoN.mp4`` of MSR-VTT. The code published with
Wang et al., arXiv 2203.07303, reads the same questions from ``msrvtt_qa_train.jsonl`` and so on, one object per line
whose ``video_id`` is the name of the clip, and uses the 1,500 most frequent training answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from meltr.video.annotations import msrvtt
from meltr.video.annotations.assembly import Draft, most_common_answers, outside_note, with_unique_ids
from meltr.video.annotations.layout import AnnotationFile, DatasetLayout
from meltr.video.annotations.parsing import read_json, read_json_lines, records, text_of
from meltr.video.corpus import Item

ANSWERS = 1500
"""Size of the vocabulary."""

LAYOUTS = (
    DatasetLayout(
        dataset="msrvtt",
        summary="MSRVTT-QA: 243,680 questions on 10,000 web clips, 1,500 answers (Xu et al., 2017).",
        tasks=("qa",),
        files=(
            AnnotationFile("train", ("train_qa.json", "msrvtt_qa_train.jsonl"), "training questions"),
            AnnotationFile("validation", ("val_qa.json", "msrvtt_qa_val.jsonl"), "validation questions"),
            AnnotationFile("test", ("test_qa.json", "msrvtt_qa_test.jsonl"), "test questions"),
        ),
        media=msrvtt.LAYOUTS[0].media,
        unit="questions",
        published={"train": 158_581, "validation": 12_278, "test": 72_821},
        homepage="https://github.com/xudejing/video-question-answering (questions) and "
        "https://github.com/m-bain/frozen-in-time (clips)",
        folders=(".", "MSRVTT-QA", "annotation", "annotations"),
    ),
)


def draft(layout: DatasetLayout, task: str, files: Mapping[str, Path]) -> Draft:
    """Return the questions of the three splits.

    Raises:
        UserError: If a file is malformed.
    """
    splits, notes = with_unique_ids({split: _questions(files[split]) for split in ("train", "validation", "test")})
    answers = most_common_answers(splits["train"], ANSWERS)
    return Draft(splits, answers, notes + outside_note(splits, answers))


def _questions(path: Path) -> list[Item]:
    if path.suffix == ".jsonl":
        rows = [(f"{path}, line {number}", record) for number, record in read_json_lines(path)]
    else:
        rows = [(where, dict(record)) for where, record in records(read_json(path), path)]
    return [
        Item(
            media=_clip(text_of(record, "video_id", where)),
            id=text_of(record, "id", where) if "id" in record else str(number),
            question=text_of(record, "question", where),
            answer=text_of(record, "answer", where),
        )
        for number, (where, record) in enumerate(rows)
    ]


def _clip(video: str) -> str:
    """Return the name of a clip from its number or its name."""
    return f"video{video}" if video.isdigit() else video
