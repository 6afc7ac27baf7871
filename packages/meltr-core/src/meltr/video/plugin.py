"""The plugin of video and language: tasks, data sets and commands. Core loads it like any installed plugin."""

from __future__ import annotations

import typer

from meltr.cli.data import add_command
from meltr.hookspecs import hookimpl
from meltr.specs import DatasetInfo, TaskInfo
from meltr.texts.names import TASKS as TEXT_TASKS
from meltr.texts.tables import LAYOUT as TEXT_LAYOUT
from meltr.video.annotations import READERS, layout
from meltr.video.cli import predict, report
from meltr.video.cli.cache import cache
from meltr.video.cli.check import check
from meltr.video.cli.sample import sample

MANIFEST = "manifest"
OWN = "Your own videos or images (captions, questions, labels, scores), or texts with a label or a target each."


@hookimpl
def register_tasks() -> list[TaskInfo]:
    """Tasks shared by several video backbones."""
    return [
        TaskInfo(name="action", summary="One label for a video: the action in it.", metrics=("top1", "top5")),
        TaskInfo(
            name="qa",
            summary="Answer a question about a video: from a vocabulary of answers, or one of several choices.",
            metrics=("accuracy",),
        ),
        TaskInfo(
            name="retrieval",
            summary="Find the video for a text (r@1 and so on), and the text for a video (v2t/r@1).",
            metrics=("r@1", "r@5", "r@10", "medr", "v2t/r@1", "v2t/r@5", "v2t/r@10", "v2t/medr"),
        ),
        TaskInfo(
            name="captioning",
            summary="Describe a video in one sentence.",
            metrics=("cider", "bleu4", "rouge_l", "meteor", "bleu1", "bleu2", "bleu3"),
        ),
        TaskInfo(
            name="sentiment",
            summary="Sentiment of the speaker in a video, from -3 to 3.",
            metrics=("mae", "corr", "ba", "f1", "ba_nonneg", "f1_nonneg", "acc7"),
            higher_is_better=False,
        ),
    ]


@hookimpl
def register_datasets() -> list[DatasetInfo]:
    """The data sets that `meltr.video.annotations` reads; a manifest of texts is read by `meltr.texts`."""
    found = []
    for each in (layout(name) for name in READERS):
        of_texts = each.dataset == MANIFEST
        found.append(
            DatasetInfo(
                name=each.dataset,
                summary=OWN if of_texts else each.summary,
                tasks=(*each.tasks, *(TEXT_TASKS if of_texts else ())),
                layout=f"{each.text()}\nOf texts:\n{TEXT_LAYOUT}" if of_texts else each.text(),
                homepage=each.homepage,
            )
        )
    return found


@hookimpl
def register_commands(app: typer.Typer) -> None:
    """Add ``meltr predict``, ``meltr report`` and the commands of ``meltr data``."""
    predict.register(app)
    report.register(app)
    add_command(app, "check", check)
    add_command(app, "cache", cache)
    add_command(app, "sample", sample)
