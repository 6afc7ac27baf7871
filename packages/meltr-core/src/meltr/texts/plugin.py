"""Registration of the task and the data set of texts: a plugin like any other. Imports no torch."""

from __future__ import annotations

from meltr.hookspecs import hookimpl
from meltr.specs import DatasetInfo, TaskInfo
from meltr.texts.names import CLASSIFYING, TASKS, WRITING
from meltr.texts.tables import LAYOUT


@hookimpl
def register_tasks() -> list[TaskInfo]:
    """Classification of texts, and writing a text for a text."""
    return [
        TaskInfo(name=CLASSIFYING, summary="Name the class of a text.", metrics=("accuracy", "macro_f1")),
        TaskInfo(
            name=WRITING,
            summary="Write a text for a text: translate it, shorten it, answer it.",
            metrics=("chrf", "bleu", "exact_match"),
        ),
    ]


@hookimpl
def register_datasets() -> list[DatasetInfo]:
    """The user's tables."""
    summary = "Your own texts: a table with the columns text and label, or text and target; CSV, TSV or JSON lines."
    return [DatasetInfo(name="text_table", summary=summary, tasks=TASKS, layout=LAYOUT)]
