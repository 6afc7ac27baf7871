"""The cases of ``meltr bench``: core's own and those of plugins. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meltr.bench import synthetic
from meltr.errors import UserError, did_you_mean
from meltr.plugins import Registry, discover
from meltr.settings import resolve
from meltr.specs import BenchmarkInfo, RunSpec

SYNTHETIC = Path(synthetic.__file__)
"""The plugin file with core's own cases; other commands load it only on request."""


@dataclass(frozen=True)
class Case:
    """A case with its backbone.

    Args:
        info: What was registered.
        backbone: Name of the backbone.
        unique: True if no other backbone has a case of that name.
    """

    info: BenchmarkInfo
    backbone: str
    unique: bool = True

    @property
    def name(self) -> str:
        """The name used with ``--case``."""
        return self.info.name if self.unique else f"{self.backbone}/{self.info.name}"

    def selection(self) -> dict[str, Any]:
        """Return the settings of the case, as the content of a config file."""
        chosen = {"backbone": self.backbone, "task": self.info.task, "dataset": self.info.dataset, "preset": "none"}
        return {**chosen, **self.info.settings}


def registry_with_cases(files: Sequence[Path] = ()) -> Registry:
    """Return the installed plugins, core's own cases, and the plugins in `files`."""
    return discover([SYNTHETIC, *files])


def all_cases(registry: Registry) -> dict[str, Case]:
    """Return the cases of all backbones by name, core's own first; a name used twice is prefixed by its backbone."""
    first = sorted(registry.backbones.values(), key=lambda info: (info.name != synthetic.NAME, info.name))
    found = [(info, case) for info in first for case in info.benchmarks]
    names = [case.name for _, case in found]
    cases = [Case(case, info.name, names.count(case.name) == 1) for info, case in found]
    return {case.name: case for case in cases}


def resolve_case(registry: Registry, case: Case, *, flags: Mapping[str, Any], sets: Sequence[str] = ()) -> RunSpec:
    """Return the run of a case with the user's settings.

    Args:
        registry: The plugins found.
        case: The case.
        flags: Setting -> value.
        sets: ``"setting=value"`` strings.

    Raises:
        UserError: If a setting is not valid.
    """
    try:
        return resolve(registry, config=case.selection(), flags=flags, sets=sets)
    except UserError as error:
        if error.hint and case.backbone == synthetic.NAME:
            # Other commands know this backbone only if its file is named.
            error.hint = error.hint.replace("config schema", f"config schema --plugin {SYNTHETIC}")
        raise


def pick(registry: Registry, names: Sequence[str]) -> list[Case]:
    """Return the cases called `names`; the default ones if `names` is empty.

    Raises:
        UserError: If there is no case of that name.
    """
    cases = all_cases(registry)
    if not names:
        return [case for case in cases.values() if case.info.default]
    for name in names:
        if name not in cases:
            raise UserError(
                f"there is no case {name!r}", f"{did_you_mean(name, cases)} `meltr bench --list` shows them."
            )
    return [cases[name] for name in dict.fromkeys(names)]
