"""The losses of a run: those that its backbone has for the task, and those that the user chose. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from meltr.errors import MeltrError, PluginError, UserError, did_you_mean
from meltr.plugins import load_object
from meltr.plugins.causes import cause_of
from meltr.specs import BackboneInfo, RunSpec


def declared(info: BackboneInfo, spec: RunSpec, options: Any) -> tuple[str, ...]:
    """Return every loss that the backbone has for a run, primary first.

    These are the declared ones, unless the backbone's losses depend on the run (`BackboneTask.losses_of`).

    Args:
        info: The backbone.
        spec: The run, complete but for its losses.
        options: The backbone's own settings: an instance of its options model, or None.

    Raises:
        UserError: If the plugin finds the run's files or settings wrong.
        PluginError: If the function fails, or returns anything but different names.
    """
    entry = info.task(spec.task)
    if entry.losses_of is None:
        return entry.losses
    where = f"backbone {info.name!r}, losses_of={entry.losses_of!r}"
    try:
        found = load_object(entry.losses_of)(spec, options)
    except MeltrError:
        raise
    except Exception as error:
        raise PluginError(f"{where} failed: {cause_of(error)}") from error
    names = found if isinstance(found, (tuple, list)) else ()
    if not names or not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
        raise PluginError(f"{where} must return the different names of one or more losses, but returned {found!r}")
    return tuple(names)


def choose(
    info: BackboneInfo, task: str, known: Sequence[str], wanted: Sequence[str] | None, primary: str | None
) -> tuple[str, ...]:
    """Return the losses in use, primary first.

    Args:
        info: The backbone.
        task: Name of the task.
        known: The losses of `declared`.
        wanted: The losses that the user names; None: those in use by default.
        primary: The loss that matters; None: the first of `known`.

    Raises:
        UserError: If a loss is unknown, or the primary one is not among those that the user names.
    """
    for name in [*(wanted or ()), *([primary] if primary else [])]:
        if name not in known:
            message = f"backbone {info.name!r} has no loss {name!r} for task {task!r}"
            hint = did_you_mean(str(name), known)
            raise UserError(message if info.task(task).losses_of is None else f"{message} in this run", hint)
    first = primary or known[0]
    if wanted and first not in wanted:
        others = ",".join([first, *wanted])
        raise UserError(f"the primary loss {first!r} cannot be removed", f"Use --set losses={others}.")
    default = [name for name in info.task(task).default_losses if name in known]
    return tuple(dict.fromkeys([first, *(wanted or default or known)]))
