"""Finds and loads plugins, each alone, so that a broken one takes no other down."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from types import ModuleType

from meltr.errors import PluginError, UserError, did_you_mean
from meltr.plugins.causes import cause_of
from meltr.plugins.checks import collect
from meltr.plugins.registry import BrokenPlugin, Plugin, Registry
from meltr.version import __version__

GROUP = "meltr"
"""Entry point group that a package names its plugin module in."""

CHOSEN = "MELTR_PLUGINS"
"""Environment variable with the installed plugins to load; `--no-plugins` sets it to nothing."""

BUILTIN = ("meltr.builtin", "meltr.video.plugin", "meltr.texts.plugin")
"""Modules of core's own plugins; they use the hooks that every plugin has."""


def discover(files: Sequence[Path] = ()) -> Registry:
    """Load core's own plugin, every installed one and those in `files`, without importing torch.

    Loading a plugin runs the module that its entry point names. The environment variable ``MELTR_PLUGINS`` restricts
    that to the installed plugins it lists, ``a,b``, by the names of their entry points; if it is empty, none is loaded.

    Args:
        files: Python files given with ``--plugin``.

    Raises:
        UserError: If one of `files` does not exist, or ``MELTR_PLUGINS`` names a plugin that is not installed.
        PluginError: If one of `files` is broken; files were requested, so they must work.
    """
    registry = Registry()
    for module in BUILTIN:
        name = "core" if module == "meltr.builtin" else module.split(".")[1]
        _load(registry, name, f"meltr-core {__version__}", lambda module=module: importlib.import_module(module))  # type: ignore[misc]
    installed = sorted(set(importlib.metadata.entry_points(group=GROUP)), key=lambda each: (each.name, each.value))
    wanted = _wanted({entry.name for entry in installed if entry.value not in BUILTIN})
    for entry in installed:
        if entry.value not in BUILTIN and entry.name in wanted:
            source = f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else entry.value
            _load(registry, entry.name, source, entry.load)
    for file in files:
        if not file.is_file():
            raise UserError(f"--plugin {file}: there is no such file", "Give the path of a Python file.")
        _load(registry, file.stem, str(file), lambda file=file: _load_file(file, files))  # type: ignore[misc]
    registry.drop_inconsistent()
    for plugin in registry.broken:
        if any(plugin.source == str(file) for file in files):
            message = f"--plugin {plugin.source} is broken: {plugin.cause}"
            raise PluginError(message, "Add --debug to see the traceback.") from plugin.error
    return registry


def _wanted(installed: Collection[str]) -> Collection[str]:
    """Return the names of the plugins to load."""
    chosen = os.environ.get(CHOSEN)
    if chosen is None:
        return installed
    names = [name.strip() for name in chosen.split(",") if name.strip()]
    unknown = next((name for name in names if name not in installed), None)
    if unknown is not None:
        raise UserError(f"{CHOSEN} names {unknown!r}, which is not installed", did_you_mean(unknown, installed))
    return names


def _load(registry: Registry, name: str, source: str, load: Callable[[], object]) -> None:
    """Load and check one plugin; any failure ends up in ``registry.broken``."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            module = load()
            registry.add(Plugin(name, source, module, collect(module)))
    except (Exception, SystemExit) as error:
        registry.broken.append(BrokenPlugin(name, source, cause_of(error), error))


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
