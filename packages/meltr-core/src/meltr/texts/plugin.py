"""Registration of the task and the data set of texts: a plugin like any other. Imports no torch."""

from __future__ import annotations

from meltr.hookspecs import hookimpl
from meltr.specs import DatasetInfo, TaskInfo
from meltr.texts.tables import LAYOUT

TASK = "text-classification"


@hookimpl
def register_tasks() -> list[TaskInfo]:
    """Classification of texts."""
    return [TaskInfo(name=TASK, summary="Name the class of a text.", metrics=("accuracy", "macro_f1"))]


@hookimpl
def register_datasets() -> list[DatasetInfo]:
    """The user's tables."""
    summary = "Your own texts: a table with the columns text and label, as CSV, TSV or JSON lines."
    return [DatasetInfo(name="text_table", summary=summary, tasks=(TASK,), layout=LAYOUT)]
