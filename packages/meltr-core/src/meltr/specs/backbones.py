"""A backbone: the tasks that it supports, its recipes in Python and its benchmarks."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from meltr.specs.info import PLUGIN_API, Info


class PresetInfo(Info):
    """A recipe in Python: a named set of settings for a task. Whole runs are files, see `BackboneInfo.recipes`.

    Args:
        name: The name used with ``--recipe``.
        summary: Source, cost and expected result in one line.
        settings: Dotted setting -> value, e.g. ``{"train.lr": 0.1, "options.depth": 4}``.
    """

    name: str
    summary: str
    settings: dict[str, Any]


class BackboneTask(Info):
    """The support of one task by a backbone.

    Args:
        task: Name of a registered task.
        losses: Every loss that the backbone can compute for the task, primary first.
        datasets: Names of the registered data sets that the backbone can read for the task.
        default_losses: The losses that are on by default (empty: all), primary first.
        losses_of: ``"module:function"``, for losses that depend on the run, such as one for each column of a table:
            called as ``function(spec, options)`` with the run, complete but for its losses, and the backbone's own
            settings. It returns the names of all losses that this run can have, primary first, and replaces `losses`,
            which says what ``meltr list --json`` shows. The module must not import torch; the function may.
    """

    task: str
    losses: tuple[str, ...] = Field(min_length=1)
    datasets: tuple[str, ...] = Field(min_length=1)
    default_losses: tuple[str, ...] = ()
    losses_of: str | None = Field(default=None, pattern=r"^[\w.]+:\w+$")

    @model_validator(mode="after")
    def _consistent(self) -> BackboneTask:
        unknown = [name for name in self.default_losses if name not in self.losses]
        if unknown:
            raise ValueError(f"default_losses names {unknown}, which are not among losses {list(self.losses)}")
        if self.default_losses and self.default_losses[0] != self.losses[0]:
            raise ValueError(f"default_losses must start with the primary loss {self.losses[0]!r}")
        return self


class BenchmarkInfo(Info):
    """A case for ``meltr bench``: a run of a backbone whose cost is measured. It must need no external data.

    Args:
        name: The name used with ``--case``.
        summary: One line: model, sizes, and what makes the case interesting.
        task: A task of the backbone.
        dataset: An embedded data set, or one with a synthetic sample (then set ``sample``).
        settings: Dotted setting -> value; no preset is used unless ``preset`` is among them.
        default: True if ``meltr bench`` runs it when no case is named: at most a few minutes on two CPU cores.
    """

    name: str = Field(pattern=r"^[\w.-]+$")
    summary: str
    task: str
    dataset: str
    settings: dict[str, Any] = Field({})
    default: bool = False


class BackboneInfo(Info):
    """A backbone plugin.

    Args:
        name: The name used with ``--backbone``.
        summary: One line for ``meltr list``.
        adapter: ``"module:Class"`` with the run hooks, imported only when a run needs it.
        tasks: The tasks it supports.
        options: ``"module:Model"``, a pydantic model (extra="forbid") of its own settings (``options.*``), or None.
            The module must not import torch.
        presets: Recipes of this backbone in Python.
        recipes: ``"package:folder"`` with its recipes in files, each a whole run; None: none.
        released: Dotted setting -> value that ``--fidelity released`` adds for this backbone.
        default_presets: ``"task/dataset"``, ``"dataset"`` or ``"task"`` -> name of the preset used when none is given.
        sample_presets: The same for ``--sample``; without an entry, `default_presets` applies.
        released_presets: The same for ``--fidelity released``; without an entry, `default_presets` applies.
        benchmarks: Cases for ``meltr bench``.
        plugin_api: The `PLUGIN_API` it was written for.
    """

    name: str
    summary: str
    adapter: str = Field(pattern=r"^[\w.]+:\w+$")
    tasks: tuple[BackboneTask, ...] = Field(min_length=1)
    options: str | None = Field(default=None, pattern=r"^[\w.]+:\w+$")
    presets: tuple[PresetInfo, ...] = ()
    recipes: str | None = Field(default=None, pattern=r"^[\w.]+:[\w./-]+$")
    released: dict[str, Any] = Field({})
    default_presets: dict[str, str] = Field({})
    sample_presets: dict[str, str] = Field({})
    released_presets: dict[str, str] = Field({})
    benchmarks: tuple[BenchmarkInfo, ...] = ()
    plugin_api: int = PLUGIN_API

    @model_validator(mode="after")
    def _known_benchmarks(self) -> BackboneInfo:
        able = {(entry.task, dataset) for entry in self.tasks for dataset in entry.datasets}
        for case in self.benchmarks:
            if (case.task, case.dataset) not in able:
                raise ValueError(
                    f"benchmark {case.name!r} is for task {case.task!r} on {case.dataset!r}, which the "
                    "backbone does not support"
                )
        names = [case.name for case in self.benchmarks]
        if len(set(names)) < len(names):
            raise ValueError(f"two benchmarks have the same name: {names}")
        return self

    def task(self, name: str) -> BackboneTask:
        """Return the entry of task `name`; KeyError if the backbone does not support it."""
        for entry in self.tasks:
            if entry.task == name:
                return entry
        raise KeyError(name)
