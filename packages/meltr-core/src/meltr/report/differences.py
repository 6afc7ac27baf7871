"""Settings that differ between runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NOT_COMPARED = ("seed", "device", "data_root", "plugins")
"""Settings that do not make another configuration."""

ABSENT = "-"
"""Stands for a setting that a run does not have, such as an option of another combiner."""


@dataclass(frozen=True)
class Difference:
    """A setting that is not the same in all runs.

    Args:
        name: Its dotted name.
        values: Its value in each run, as text; `ABSENT` if the run does not have it.
    """

    name: str
    values: tuple[str, ...]


def differences(specs: Sequence[Mapping[str, Any]]) -> tuple[Difference, ...]:
    """Return the settings that differ, in the order of the descriptions.

    A setting that only some runs have (an option of their combiner) counts only if these runs differ in it: that the
    others do not have it follows from the choice of the combiner, which is listed.

    Args:
        specs: The content of run.yaml of each run.
    """
    flat = [_flattened(spec) for spec in specs]
    found = []
    for name in dict.fromkeys(name for each in flat for name in each):
        given = [each[name] for each in flat if name in each]
        if len(set(given)) > 1:
            found.append(Difference(name, tuple(each.get(name, ABSENT) for each in flat)))
    return tuple(found)


def _flattened(spec: Mapping[str, Any], before: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in spec.items():
        name = f"{before}{key}"
        if name in NOT_COMPARED:
            continue
        if isinstance(value, Mapping):
            found.update(_flattened(value, f"{name}."))
        else:
            found[name] = _shown(value)
    return found


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, (list, tuple)):
        return ",".join(map(_shown, value))
    return value if isinstance(value, str) else json.dumps(value, default=str)
