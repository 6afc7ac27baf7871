"""Finds plugins without importing torch, and creates the plugin manager of a run.

A broken plugin does not affect the others: each is loaded and checked alone, and its error is kept in
`Registry.broken`. Nothing from a broken plugin stays registered.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy
from pydantic import ValidationError

from meltr.errors import MeltrError, PluginError, UserError, did_you_mean
from meltr.hookspecs import PROJECT, AdapterSpecs, DiscoverySpecs, ObserverSpecs
from meltr.specs import (
    PLUGIN_API,
    BackboneInfo,
    CombinerInfo,
    DatasetInfo,
    EstimatorInfo,
    RunSpec,
    SchemeInfo,
    TaskInfo,
)
from meltr.version import __version__

if TYPE_CHECKING:
    import typer

T = TypeVar("T")

GROUP = "meltr"
"""Entry point group under which a package names its plugin module."""

BUILTIN = ("meltr.builtin", "meltr.video.plugin")
"""Modules of core's own plugins, which use the same hooks as any plugin."""

REQUIRED_HOOKS = ("build_data", "build_model", "compute_task_losses", "evaluate")
KINDS = {
    "task": TaskInfo,
    "dataset": DatasetInfo,
    "backbone": BackboneInfo,
    "combiner": CombinerInfo,
    "scheme": SchemeInfo,
    "estimator": EstimatorInfo,
}
_NOUNS = {"dataset": "data set"}
_FOREIGN = re.compile(r"^<|pluggy|pydantic|importlib|meltr.plugins\.py$")


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
class _Plugin:
    """A plugin that passed the checks that do not depend on other plugins."""

    name: str
    source: str
    module: object
    items: dict[str, dict[str, Any]]

    @property
    def owner(self) -> str:
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
    _plugins: list[_Plugin] = field(default_factory=list, repr=False)

    def owner(self, kind: str, name: str) -> str:
        """Return the package or file that registered the `kind` (``backbone``, ...) `name`; KeyError if none did."""
        for plugin in self._plugins:
            if name in plugin.items[kind]:
                return plugin.source
        raise KeyError(f"{kind} {name}")

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
                    _manager(DiscoverySpecs, plugin=plugin.module).hook.register_commands(app=app)
                names = _command_names(app)
                if len(names) > len(set(names)):
                    twice = sorted({name for name in names if names.count(name) > 1})
                    raise PluginError(f"register_commands() adds {twice}, which another plugin or core already has")
            except (Exception, SystemExit) as error:
                app.registered_commands, app.registered_groups = commands, groups
                self._drop(plugin, BrokenPlugin(plugin.name, plugin.source, _cause(error), error))

    def _get(self, kind: str, name: str, table: Mapping[str, T]) -> T:
        if name in table:
            return table[name]
        hint = f"{did_you_mean(name, table)} `meltr list {kind}s` shows them."
        for plugin in self.broken:
            hint += f"\nPerhaps it belongs to plugin {plugin.name!r} ({plugin.source}), which is broken: {plugin.cause}"
        raise UserError(f"unknown {_NOUNS.get(kind, kind)} {name!r}", hint)

    def _add(self, plugin: _Plugin) -> None:
        """Add everything of `plugin`; PluginError, and nothing added, if one of its names is taken."""
        for other in self._plugins:
            for kind, items in plugin.items.items():
                for name in items.keys() & other.items[kind].keys():
                    what = f"{_NOUNS.get(kind, kind)} {name!r}"
                    raise PluginError(f"{what} is already registered by {other.owner}; {plugin.owner} repeats it")
        self._plugins.append(plugin)
        self._rebuild()

    def _drop(self, plugin: _Plugin, report: BrokenPlugin) -> None:
        """Remove everything of `plugin`, and then everything that depends on it."""
        self._plugins.remove(plugin)
        self.broken.append(report)
        self._rebuild()
        self._drop_inconsistent()

    def _rebuild(self) -> None:
        self.modules = [plugin.module for plugin in self._plugins]
        for kind in KINDS:
            table = getattr(self, f"{kind}s")
            table.clear()
            for plugin in self._plugins:
                table.update(plugin.items[kind])

    def _drop_inconsistent(self) -> None:
        """Remove plugins whose backbones name unregistered tasks or data sets."""
        for plugin in list(self._plugins):
            for info in plugin.items["backbone"].values():
                problem = _unknown_reference(info, self)
                if problem and plugin in self._plugins:
                    self._drop(plugin, BrokenPlugin(plugin.name, plugin.source, problem))


def discover(files: Sequence[Path] = ()) -> Registry:
    """Load core's own plugin, every installed one and those in `files`, without importing torch.

    Args:
        files: Python files given with ``--plugin``.

    Raises:
        UserError: If one of `files` does not exist.
        PluginError: If one of `files` is broken; files were requested, so they must work.
    """
    registry = Registry()
    for module in BUILTIN:
        name = "core" if module == "meltr.builtin" else module.split(".")[1]
        _load(registry, name, f"meltr-core {__version__}", lambda module=module: importlib.import_module(module))  # type: ignore[misc]
    for entry in sorted(set(importlib.metadata.entry_points(group=GROUP)), key=lambda each: (each.name, each.value)):
        if entry.value not in BUILTIN:
            source = f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else entry.value
            _load(registry, entry.name, source, entry.load)
    for file in files:
        if not file.is_file():
            raise UserError(f"--plugin {file}: there is no such file", "Give the path of a Python file.")
        _load(registry, file.stem, str(file), lambda file=file: _load_file(file, files))  # type: ignore[misc]
    registry._drop_inconsistent()
    for plugin in registry.broken:
        if any(plugin.source == str(file) for file in files):
            message = f"--plugin {plugin.source} is broken: {plugin.cause}"
            raise PluginError(message, "Add --debug to see the traceback.") from plugin.error
    return registry


def load_object(path: str) -> Any:
    """Return the object that ``"module:name"`` refers to.

    Raises:
        PluginError: If the module cannot be imported or has no such name.
    """
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except MeltrError:
        raise
    except Exception as error:
        hint = f"Install what provides {error.name!r}." if isinstance(error, ModuleNotFoundError) else None
        raise PluginError(f"{path!r} cannot be loaded: {_cause(error)}", hint) from error
    if not hasattr(module, name):
        public = [each for each in vars(module) if not each.startswith("_")]
        raise PluginError(f"module {module_name!r} has no {name!r}", did_you_mean(name, public))
    return getattr(module, name)


def run_manager(
    registry: Registry, backbone: RunSpec | BackboneInfo, observers: Sequence[object] = ()
) -> pluggy.PluginManager:
    """Return the plugin manager of one run: one adapter, the observers, and plugin modules that observe.

    Args:
        registry: The plugins found.
        backbone: The run, or the description of its backbone.
        observers: Objects that implement hooks of `ObserverSpecs`.

    Raises:
        PluginError: If the adapter cannot be loaded, lacks a hook or has an unknown one.
    """
    info = backbone if isinstance(backbone, BackboneInfo) else registry.backbone(backbone.backbone)
    manager = _manager(AdapterSpecs, ObserverSpecs)
    manager.register(_adapter(info), name=f"adapter of {info.name}")
    for module in registry.modules:
        if _check_hooks(module, "", DiscoverySpecs, ObserverSpecs) & _names(ObserverSpecs):
            manager.register(module)
    for number, observer in enumerate(observers):
        label = f"observer {type(observer).__name__}"
        if not _check_hooks(observer, label, ObserverSpecs):
            raise PluginError(f"{label} implements no hook", _decorate(*sorted(_names(ObserverSpecs))))
        if not manager.is_registered(observer):
            manager.register(observer, name=f"{label} {number}")
    return manager


def _adapter(info: BackboneInfo) -> object:
    factory = load_object(info.adapter)
    label = f"adapter {info.adapter!r} of backbone {info.name!r}"
    try:
        adapter: object = factory()
    except MeltrError:
        raise
    except Exception as error:
        message = f"{label} cannot be created: {_cause(error)}"
        raise PluginError(message, "It is created without arguments; give each argument a default.") from error
    present = _check_hooks(adapter, label, AdapterSpecs, ObserverSpecs)
    missing = [name for name in REQUIRED_HOOKS if name not in present]
    if missing:
        raise PluginError(f"{label} lacks the required hook {missing[0]}()", _decorate(*missing, holder=adapter))
    return adapter


def _decorate(*hooks: str, holder: object = None) -> str:
    """Return a hint that shows how to write the first of `hooks`."""
    bare = ", ".join(name for name in hooks if callable(getattr(holder, name, None)))
    decorator = "@hookimpl (from meltr import hookimpl)"
    return f"Put {decorator} before {bare}." if bare else f"Write {', '.join(hooks)}, each with {decorator}."


def _manager(*specs: type, plugin: object = None) -> pluggy.PluginManager:
    manager = pluggy.PluginManager(PROJECT)
    for each in specs:
        manager.add_hookspecs(each)
    if plugin is not None:
        manager.register(plugin)
    return manager


def _names(specs: type) -> set[str]:
    return {name for name in vars(specs) if not name.startswith("_")}


def _check_hooks(plugin: object, label: str, *specs: type) -> set[str]:
    """Return the hooks that `plugin` implements; PluginError if one is unknown or takes an unknown argument."""
    try:
        manager = _manager(*specs, plugin=plugin)
    except pluggy.PluginValidationError as error:
        message = f"{label}: {'; '.join(str(error).splitlines()[1:])}"
        raise PluginError(message, "The signatures are in meltr.hookspecs.") from error
    callers = manager.get_hookcallers(plugin) or []
    for caller in callers:
        if not caller.has_spec() and not all(each.optionalhook for each in caller.get_hookimpls()):
            if caller.name in _names(AdapterSpecs):
                raise PluginError(f"{label}: {caller.name}() belongs to the adapter class, not to the plugin module")
            known = set().union(*(_names(each) for each in specs))
            raise PluginError(f"{label}: there is no hook {caller.name}(). {did_you_mean(caller.name, known)}")
    return {caller.name for caller in callers}


def _load(registry: Registry, name: str, source: str, load: Callable[[], object]) -> None:
    """Load and check one plugin; any failure ends up in ``registry.broken``."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            module = load()
            registry._add(_Plugin(name, source, module, _collect(module)))
    except (Exception, SystemExit) as error:
        registry.broken.append(BrokenPlugin(name, source, _cause(error), error))


def _collect(module: object) -> dict[str, dict[str, Any]]:
    """Call the registration hooks of one plugin and check their return values."""
    label = getattr(module, "__name__", repr(module))
    present = _check_hooks(module, label, DiscoverySpecs, ObserverSpecs)
    if not present:
        raise PluginError(f"{label} implements no hook. {_decorate('register_backbones', holder=module)}")
    hooks = _manager(DiscoverySpecs, plugin=module).hook
    items: dict[str, dict[str, Any]] = {}
    for kind, kind_type in KINDS.items():
        hook = f"register_{kind}s"
        items[kind] = {}
        for result in getattr(hooks, hook)():
            for info in _checked(result, hook, kind_type):
                if info.name in items[kind]:
                    raise PluginError(f"{hook}() returns {info.name!r} twice")
                items[kind][info.name] = info
    for backbone in items["backbone"].values():
        _check_backbone(backbone)
    return items


def _checked(result: object, hook: str, kind: type[Any]) -> Sequence[Any]:
    wrong = [each for each in result if not isinstance(each, kind)] if isinstance(result, (list, tuple)) else [result]
    if wrong:
        raise PluginError(f"{hook}() must return a list of {kind.__name__}, but there is a {type(wrong[0]).__name__}")
    return result  # type: ignore[return-value]


def _check_backbone(info: BackboneInfo) -> None:
    """Check the description of a backbone; PluginError if it is inconsistent."""
    if info.plugin_api != PLUGIN_API:
        raise PluginError(
            f"backbone {info.name!r} was written for plugin API {info.plugin_api}; this meltr has {PLUGIN_API}. "
            f"Upgrade {'meltr-core' if info.plugin_api > PLUGIN_API else 'the plugin'}"
        )
    presets = [preset.name for preset in info.presets]
    readable = {f"{entry.task}/{name}" for entry in info.tasks for name in entry.datasets}
    readable |= {name for entry in info.tasks for name in entry.datasets}
    readable |= {entry.task for entry in info.tasks}
    for kind in ("default_presets", "sample_presets", "released_presets"):
        for key, preset in getattr(info, kind).items():
            where = f"backbone {info.name!r}: {kind}[{key!r}]"
            if preset not in presets:
                raise PluginError(f"{where} names the unknown preset {preset!r}. {did_you_mean(preset, presets)}")
            if key not in readable:
                raise PluginError(
                    f"{where} is for no task and data set of this backbone. {did_you_mean(key, readable)}"
                )


def _unknown_reference(info: BackboneInfo, registry: Registry) -> str | None:
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


def _load_file(file: Path, files: Sequence[Path]) -> ModuleType:
    """Import `file` under a name that depends only on its stem (and its number among files with the same stem)."""
    number = [each for each in files if each.stem == file.stem].index(file)
    name = f"meltr_plugin_{re.sub(r'[^A-Za-z0-9_]', '_', file.stem)}" + (f"_{number + 1}" if number else "")
    spec = importlib.util.spec_from_file_location(name, file.resolve())
    if spec is None or spec.loader is None:
        raise PluginError("the name of a Python file must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _command_names(app: typer.Typer) -> list[str]:
    names = [each.name or getattr(each.callback, "__name__", "") for each in app.registered_commands]
    return [str(name).replace("_", "-") for name in names + [each.name or "" for each in app.registered_groups]]


def _cause(error: BaseException) -> str:
    """Return an exception in one line: its type, its message, and the line of the plugin that raised it."""
    if isinstance(error, MeltrError):
        return ". ".join(part.rstrip(".").replace("\n", " ") for part in (error.message, error.hint) if part)
    if isinstance(error, ValidationError):
        text = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        text = f"{error.title}: {text}"
    else:
        text = f"{type(error).__name__}: {error}".strip().split("\n")[0]
    frames = [each for each in traceback.extract_tb(error.__traceback__) if not _FOREIGN.search(each.filename)]
    return f"{text} ({frames[-1].filename}, line {frames[-1].lineno})" if frames else text
