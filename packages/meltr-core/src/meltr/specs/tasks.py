"""Tasks and data sets, which several backbones share."""

from __future__ import annotations

from pydantic import Field

from meltr.specs.info import Info


class TaskInfo(Info):
    """A task, independent of any backbone.

    Args:
        name: The name used with ``--task``.
        summary: One line for ``meltr list``.
        metrics: Names of the metrics that `evaluate` must return, primary first.
        higher_is_better: Direction of the primary metric, which selects the best checkpoint.
    """

    name: str
    summary: str
    metrics: tuple[str, ...] = Field(min_length=1)
    higher_is_better: bool = True


class DatasetInfo(Info):
    """A data set.

    Args:
        name: The name used with ``--dataset``.
        summary: One line for ``meltr list``.
        tasks: Names of the tasks that it has annotations for.
        embedded: True if it needs no ``--data-root`` (it is part of a library, or generated on the fly).
        layout: Which file goes where below ``--data-root``, shown when a file is missing.
        homepage: Where to download it.
    """

    name: str
    summary: str
    tasks: tuple[str, ...] = Field(min_length=1)
    embedded: bool = False
    layout: str | None = None
    homepage: str | None = None
