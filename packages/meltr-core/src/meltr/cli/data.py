"""``meltr data``: the group of commands for data sets; plugins add commands with `add_command`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from meltr.errors import PluginError

NAME = "data"


def register(app: typer.Typer) -> None:
    """Add the group to `app`."""
    _group(app)


def add_command(app: typer.Typer, name: str, command: Callable[..., Any]) -> None:
    """Add a command to the group; plugins call it in their hook ``register_commands``.

    Args:
        app: The app that the hook received.
        name: Name of the command after ``meltr data``.
        command: The function.

    Raises:
        PluginError: If there is already a command of that name.
    """
    group = _group(app)
    if name in [each.name for each in group.registered_commands]:
        raise PluginError(f"there is already a command `meltr {NAME} {name}`")
    group.command(name)(command)


def _group(app: typer.Typer) -> typer.Typer:
    """Return the group of `app`, which is added if missing."""
    for each in app.registered_groups:
        if each.name == NAME and each.typer_instance is not None:
            return each.typer_instance
    group = typer.Typer(name=NAME, help="Check data sets, and prepare them.", no_args_is_help=True)
    app.add_typer(group, name=NAME)
    return group
