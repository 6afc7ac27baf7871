"""TGIF-QA: questions on animated GIFs: repeated actions and transitions with five choices, frames with one word.

Published by Jang et al., "TGIF-QA: Toward Spatio-Temporal Reasoning in Visual Question Answering" (CVPR 2017; extended
in IJCV 2019) in the public repository YunseokJANG/tgif-qa, folder ``dataset``: tab-separated files with a header,
``gif_name question a1 a2 a3 a4 a5 answer vid_id key`` (``answer`` is the index of the right choice) or
``gif_name question answer type vid_id key description``. The values of the last two are swapped relative to the header:
``vid_id`` holds the name of the question, such as ``ACTION4``. The counts are those of the repository's table; the
files themselves can be a few lines shorter (20,473 actions for training). There is no validation split.

The vocabulary of frame questions is the set of all training answers: 1,540.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from meltr.video.annotations.assembly import Draft, most_common_answers, outside_note, with_unique_ids
from meltr.video.annotations.layout import AnnotationFile, DatasetLayout, MediaFolder
from meltr.video.annotations.parsing import malformed, read_table, text_of
from meltr.video.corpus import Item

CHOICES = ("a1", "a2", "a3", "a4", "a5")
"""Columns of the choices."""


def _layout(dataset: str, word: str, summary: str, *, train: int, test: int) -> DatasetLayout:
    return DatasetLayout(
        dataset=dataset,
        summary=summary,
        tasks=("qa",),
        files=(
            AnnotationFile("train", (f"Train_{word}_question.csv", f"Train_{word}_question.tsv"), "training questions"),
            AnnotationFile("test", (f"Test_{word}_question.csv", f"Test_{word}_question.tsv"), "test questions"),
        ),
        media=MediaFolder(("gifs", "videos", "."), "tumblr_nk172bbdPI1u1lr18o1_250.gif"),
        unit="questions",
        published={"train": train, "test": test},
        homepage="https://github.com/YunseokJANG/tgif-qa",
        folders=(".", "dataset"),
    )


LAYOUTS = (
    _layout(
        "tgif-action",
        "action",
        "TGIF-QA: what is done N times in a GIF; five choices.",
        train=20_475,
        test=2_274,
    ),
    _layout(
        "tgif-transition",
        "transition",
        "TGIF-QA: what happens before or after in a GIF; five choices.",
        train=52_704,
        test=6_232,
    ),
    _layout("tgif-frame", "frameqa", "TGIF-QA: what a frame of a GIF shows; 1,540 answers.", train=39_392, test=13_691),
)


def draft(layout: DatasetLayout, task: str, files: Mapping[str, Path]) -> Draft:
    """Return the questions of the two splits.

    Raises:
        UserError: If a file is malformed, or an answer is not among the choices.
    """
    chosen = layout.dataset != "tgif-frame"
    read = {split: _questions(files[split], chosen=chosen) for split in ("train", "test")}
    splits, notes = with_unique_ids(read)
    if chosen:
        return Draft(splits, notes=notes)
    answers = most_common_answers(splits["train"])
    return Draft(splits, answers, notes + outside_note(splits, answers))


def _questions(path: Path, *, chosen: bool) -> list[Item]:
    columns = ("gif_name", "question", *(CHOICES if chosen else ()), "answer", "vid_id", "key")
    items = []
    for line, row in read_table(path, columns, delimiter="\t"):
        where = f"{path}, line {line}"
        answer = text_of(row, "answer", where)
        choices = tuple(row[name].strip() for name in CHOICES) if chosen else ()
        correct = _index(answer, where) if chosen else None
        items.append(
            Item(
                media=text_of(row, "gif_name", where),
                id=row["key"] if row["vid_id"].isdecimal() else row["vid_id"],
                question=text_of(row, "question", where),
                answer=answer if correct is None else choices[correct],
                choices=choices,
                correct=correct,
            )
        )
    return items


def _index(answer: str, where: str) -> int:
    if answer not in ("0", "1", "2", "3", "4"):
        raise malformed(where, f"answer {answer!r:.60} is not the index of a choice, 0 to 4.")
    return int(answer)
