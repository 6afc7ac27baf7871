"""What a plugin must keep to: its hooks, what they return, what its descriptions name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pluggy

from meltr.errors import PluginError, did_you_mean
from meltr.hookspecs import PROJECT, AdapterSpecs, DiscoverySpecs, ObserverSpecs
from meltr.plugins.blame import trace
from meltr.specs import (
    PLUGIN_API,
    BackboneInfo,
    CombinerInfo,
    DatasetInfo,
    EstimatorInfo,
    SchemeInfo,
    TaskInfo,
)

KINDS = {
    "task": TaskInfo,
    "dataset": DatasetInfo,
    "backbone": BackboneInfo,
    "combiner": CombinerInfo,
    "scheme": SchemeInfo,
    "estimator": EstimatorInfo,
}
"""What plugins register, each by a hook ``register_KINDs``, and the type of its description."""


TRACE = "MELTR_TRACE_PLUGINS"
"""Environment variable: 1 prints every call of a hook to standard error."""


def new_manager(*specs: type, plugin: object = None) -> pluggy.PluginManager:
    """Return a plugin manager that knows the hooks of `specs`, with `plugin` registered."""
    manager = pluggy.PluginManager(PROJECT)
    for each in specs:
        manager.add_hookspecs(each)
    if plugin is not None:
        manager.register(plugin)
    if os.environ.get(TRACE, "0") not in ("", "0"):
        trace(manager)
    return manager


def hook_names(specs: type) -> set[str]:
    """Return the names of the hooks that a class of specifications has."""
    return {name for name in vars(specs) if not name.startswith("_")}


def check_hooks(plugin: object, label: str, *specs: type) -> set[str]:
    """Return the hooks that `plugin` implements; PluginError if one is unknown or takes an unknown argument."""
    return {caller.name for caller in checked_manager(plugin, label, *specs).get_hookcallers(plugin) or []}


def checked_manager(plugin: object, label: str, *specs: type) -> pluggy.PluginManager:
    """Return a plugin manager of `plugin` alone; PluginError if a hook is unknown or takes an unknown argument."""
    try:
        manager = new_manager(*specs, plugin=plugin)
    except pluggy.PluginValidationError as error:
        message = f"{label}: {'; '.join(str(error).splitlines()[1:])}"
        raise PluginError(message, "The signatures are in meltr.hookspecs.") from error
    for caller in manager.get_hookcallers(plugin) or []:
        if not caller.has_spec() and not all(each.optionalhook for each in caller.get_hookimpls()):
            if caller.name in hook_names(AdapterSpecs):
                raise PluginError(f"{label}: {caller.name}() belongs to the adapter class, not to the plugin module")
            known = set().union(*(hook_names(each) for each in specs))
            raise PluginError(f"{label}: there is no hook {caller.name}(). {did_you_mean(caller.name, known)}")
    return manager


def how_to_write(*hooks: str, holder: object = None) -> str:
    """Return a hint that shows how to write the first of `hooks`."""
    bare = ", ".join(name for name in hooks if callable(getattr(holder, name, None)))
    decorator = "@hookimpl (from meltr import hookimpl)"
    return f"Put {decorator} before {bare}." if bare else f"Write {', '.join(hooks)}, each with {decorator}."


def collect(module: object) -> dict[str, dict[str, Any]]:
    """Call the registration hooks of one plugin; return its descriptions by kind and name.

    Raises:
        PluginError: If a hook is unknown, returns something else, or a description contradicts itself.
    """
    label = getattr(module, "__name__", repr(module))
    manager = checked_manager(module, label, DiscoverySpecs, ObserverSpecs)
    if not manager.get_hookcallers(module):
        raise PluginError(f"{label} implements no hook. {how_to_write('register_backbones', holder=module)}")
    hooks = manager.hook
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
