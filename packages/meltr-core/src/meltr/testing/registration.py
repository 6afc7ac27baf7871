"""Discovery: the plugin can be listed without torch, and refuses settings that it does not have."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest

from meltr.errors import UserError
from meltr.plugins import Registry, load_object
from meltr.setting_keys import Keys
from meltr.specs import BackboneInfo, RunSpec
from meltr.testing.case import Case

_HEAVY = ("torch", "torchvision", "transformers", "timm")

_LOOK = """
import importlib, sys
plugin = importlib.import_module(sys.argv[1])
for name in ("backbones", "tasks", "datasets", "combiners", "schemes", "estimators"):
    getattr(plugin, f"register_{name}", list)()
for name in sys.argv[3:]:
    importlib.import_module(name)
print([name for name in sys.argv[2].split(",") if name in sys.modules])
"""


class Registration(Case):
    """What ``meltr list`` and the check of settings need."""

    def test_discovery_imports_nothing_heavy(self, registry: Registry) -> None:
        """The module of the entry point and the options model import no torch: ``meltr --help`` loads them."""
        if self.plugins:
            pytest.skip("a plugin in a file is loaded only for runs that name it")
        info = registry.backbone(self.backbone)
        options = [info.options.partition(":")[0]] if info.options else []
        words = [_module_of(info, registry).__name__, ",".join(_HEAVY), *options]
        command = [sys.executable, "-c", _LOOK, *words]
        found = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603, our own words
        assert found.returncode == 0, found.stderr
        assert found.stdout.strip() == "[]", f"{words[0]} and {options} import {found.stdout.strip()}"

    def test_an_unknown_option_is_refused(self, registry: Registry, spec: RunSpec) -> None:
        """The options model has ``extra="forbid"``, so that a misspelt setting is an error and not ignored."""
        path = registry.backbone(self.backbone).options
        with pytest.raises(UserError):
            self.make_spec(registry, options__no_such_option=1)
        if path is not None:
            model = load_object(path)
            assert model.model_config.get("extra") == "forbid", f"{path} must derive from meltr.specs.Info"
            assert model(**spec.options).model_dump(mode="json") == spec.options, "options do not survive a run.yaml"

    def test_names_of_options_are_not_taken(self, registry: Registry) -> None:
        """``--set NAME=VALUE`` must mean one setting: core and the default combiner have theirs."""
        info = registry.backbone(self.backbone)
        if info.options is None:
            pytest.skip("the backbone has no options")
        keys = Keys(registry, None)
        taken = {path.rpartition(".")[2]: path for path in keys.fields}
        clash = {name: taken[name] for name in load_object(info.options).model_fields if name in taken}
        assert not clash, f"options with the names of other settings: {clash}"


def _module_of(info: BackboneInfo, registry: Registry) -> ModuleType:
    """Return the plugin module that registers a backbone."""
    for module in registry.modules:
        register = getattr(module, "register_backbones", None)
        if register is not None and any(each.name == info.name for each in register()):
            assert isinstance(module, ModuleType)
            return module
    raise KeyError(info.name)
