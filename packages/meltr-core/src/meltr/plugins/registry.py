"""What the healthy plugins registered."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from meltr.errors import PluginError, UserError, did_you_mean
from meltr.hookspecs import DiscoverySpecs
from meltr.plugins.causes import cause_of
from meltr.plugins.checks import KINDS, new_manager
from meltr.specs import BackboneInfo, CombinerInfo, DatasetInfo, EstimatorInfo, SchemeInfo, TaskInfo

if TYPE_CHECKING:
    import typer

T = TypeVar("T")

_NOUNS = {"dataset": "data set"}


@dataclass(frozen=True)
class BrokenPlugin:
    """A plugin that failed to load and was skipped.

    Args:
        name: Its entry point, or the name of its file.
        source: Distribution and version, or the path of the file.
        cause: What is wrong with it.
        error: The exception behind it, if there was one.
    """

    name: str
    source: str
    cause: str
    error: BaseException | None = None


@dataclass
class Plugin:
    """A plugin that passed the checks that do not depend on other plugins."""

    name: str
    source: str
    module: object
    items: dict[str, dict[str, Any]]

    @property
    def owner(self) -> str:
        """How messages name it."""
        return f"plugin {self.name!r} ({self.source})"


@dataclass
class Registry:
    """Everything that the working plugins registered, by name, and the errors of the others."""

    backbones: dict[str, BackboneInfo] = field(default_factory=dict)
    tasks: dict[str, TaskInfo] = field(default_factory=dict)
    datasets: dict[str, DatasetInfo] = field(default_factory=dict)
    combiners: dict[str, CombinerInfo] = field(default_factory=dict)
    schemes: dict[str, SchemeInfo] = field(default_factory=dict)
    estimators: dict[str, EstimatorInfo] = field(default_factory=dict)
    broken: list[BrokenPlugin] = field(default_factory=list)
    modules: list[object] = field(default_factory=list)
    _plugins: list[Plugin] = field(default_factory=list, repr=False)

    def owner(self, kind: str, name: str) -> str:
        """Return the package or file that registered the `kind` (``backbone``, ...) `name`; KeyError if none did."""
        for plugin in self._plugins:
            if name in plugin.items[kind]:
                return plugin.source
        raise KeyError(f"{kind} {name}")

    def sources(self) -> dict[str, str]:
        """Return every plugin that was found, healthy or broken, with its package or file."""
        healthy = {plugin.name: plugin.source for plugin in self._plugins}
        return healthy | {plugin.name: plugin.source for plugin in self.broken}

    def backbone(self, name: str) -> BackboneInfo:
        """Return the backbone `name`; UserError with the valid choices if there is none."""
        return self._get("backbone", name, self.backbones)

    def task(self, name: str) -> TaskInfo:
        """Return the task `name`; UserError with the valid choices if there is none."""
        return self._get("task", name, self.tasks)

    def dataset(self, name: str) -> DatasetInfo:
        """Return the data set `name`; UserError with the valid choices if there is none."""
        return self._get("dataset", name, self.datasets)

    def combiner(self, name: str) -> CombinerInfo:
        """Return the combiner `name`; UserError with the valid choices if there is none."""
        return self._get("combiner", name, self.combiners)

    def scheme(self, name: str) -> SchemeInfo:
        """Return the scheme `name`; UserError with the valid choices if there is none."""
        return self._get("scheme", name, self.schemes)

    def estimator(self, name: str) -> EstimatorInfo:
        """Return the estimator `name`; UserError with the valid choices if there is none."""
        return self._get("estimator", name, self.estimators)

    def register_commands(self, app: typer.Typer) -> None:
        """Let every plugin add its commands to `app`; one that fails becomes broken, and its commands are removed."""
        for plugin in list(self._plugins):
            commands, groups = list(app.registered_commands), list(app.registered_groups)
            try:
                with contextlib.redirect_stdout(sys.stderr):
                    new_manager(DiscoverySpecs, plugin=plugin.module).hook.register_commands(app=app)
                names = _command_names(app)
                if len(names) > len(set(names)):
                    twice = sorted({name for name in names if names.count(name) > 1})
                    raise PluginError(f"register_commands() adds {twice}, which another plugin or core already has")
            except (Exception, SystemExit) as error:
                app.registered_commands, app.registered_groups = commands, groups
                self._drop(plugin, BrokenPlugin(plugin.name, plugin.source, cause_of(error), error))

    def _get(self, kind: str, name: str, table: Mapping[str, T]) -> T:
        if name in table:
            return table[name]
        hint = f"{did_you_mean(name, table)} `meltr list {kind}s` shows them."
        for plugin in self.broken:
            hint += f"\nPerhaps it belongs to plugin {plugin.name!r} ({plugin.source}), which is broken: {plugin.cause}"
        raise UserError(f"unknown {_NOUNS.get(kind, kind)} {name!r}", hint)

    def add(self, plugin: Plugin) -> None:
        """Add everything of `plugin`; PluginError, and nothing added, if one of its names is taken."""
        for other in self._plugins:
            for kind, items in plugin.items.items():
                for name in items.keys() & other.items[kind].keys():
                    what = f"{_NOUNS.get(kind, kind)} {name!r}"
                    raise PluginError(f"{what} is already registered by {other.owner}; {plugin.owner} repeats it")
        self._plugins.append(plugin)
        self._rebuild()

    def _drop(self, plugin: Plugin, report: BrokenPlugin) -> None:
        """Remove everything of `plugin`, and then everything that depends on it."""
        self._plugins.remove(plugin)
        self.broken.append(report)
        self._rebuild()
        self.drop_inconsistent()

    def _rebuild(self) -> None:
        self.modules = [plugin.module for plugin in self._plugins]
        for kind in KINDS:
            table = getattr(self, f"{kind}s")
            table.clear()
            for plugin in self._plugins:
                table.update(plugin.items[kind])

    def drop_inconsistent(self) -> None:
        """Remove plugins whose backbones name unregistered tasks or data sets."""
        for plugin in list(self._plugins):
            for info in plugin.items["backbone"].values():
                problem = unknown_reference(info, self)
                if problem and plugin in self._plugins:
                    self._drop(plugin, BrokenPlugin(plugin.name, plugin.source, problem))


def unknown_reference(info: BackboneInfo, registry: Registry) -> str | None:
    """Return a message about a name in a backbone that nobody registered; None if there is none."""
    for entry in info.tasks:
        if entry.task not in registry.tasks:
            guess = did_you_mean(entry.task, registry.tasks)
            return f"backbone {info.name!r} names the unknown task {entry.task!r}. {guess}"
        for name in entry.datasets:
            if name not in registry.datasets:
                guess = did_you_mean(name, registry.datasets)
                return f"backbone {info.name!r}, task {entry.task!r}, names the unknown data set {name!r}. {guess}"
    return None


def _command_names(app: typer.Typer) -> list[str]:
    names = [each.name or getattr(each.callback, "__name__", "") for each in app.registered_commands]
    return [str(name).replace("_", "-") for name in names + [each.name or "" for each in app.registered_groups]]
