"""The plugin manager of one run, and the heavy objects that light descriptions name."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import pluggy

from meltr.errors import MeltrError, PluginError, did_you_mean
from meltr.hookspecs import AdapterSpecs, DiscoverySpecs, ObserverSpecs
from meltr.plugins.causes import cause_of
from meltr.plugins.checks import check_hooks, hook_names, how_to_write, new_manager
from meltr.plugins.registry import Registry
from meltr.specs import BackboneInfo, RunSpec

REQUIRED_HOOKS = ("build_data", "build_model", "compute_task_losses", "evaluate")
"""Hooks that every adapter has."""


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
        raise PluginError(f"{path!r} cannot be loaded: {cause_of(error)}", hint) from error
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
    manager = new_manager(AdapterSpecs, ObserverSpecs)
    manager.register(_adapter(info), name=f"adapter of {info.name}")
    for module in registry.modules:
        if check_hooks(module, "", DiscoverySpecs, ObserverSpecs) & hook_names(ObserverSpecs):
            manager.register(module)
    for number, observer in enumerate(observers):
        label = f"observer {type(observer).__name__}"
        if not check_hooks(observer, label, ObserverSpecs):
            raise PluginError(f"{label} implements no hook", how_to_write(*sorted(hook_names(ObserverSpecs))))
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
        message = f"{label} cannot be created: {cause_of(error)}"
        raise PluginError(message, "It is created without arguments; give each argument a default.") from error
    present = check_hooks(adapter, label, AdapterSpecs, ObserverSpecs)
    missing = [name for name in REQUIRED_HOOKS if name not in present]
    if missing:
        raise PluginError(f"{label} lacks the required hook {missing[0]}()", how_to_write(*missing, holder=adapter))
    return adapter
