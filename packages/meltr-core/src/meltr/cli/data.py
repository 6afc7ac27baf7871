"""``meltr data``: the group of commands about data; plugins add the commands with `add_command`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from meltr.errors import PluginError

NAME = "data"


def register(app: typer.Typer) -> None:
    """Add the group to `app`."""
    group = typer.Typer(name=NAME, help="Check data sets, and prepare them.", no_args_is_help=True)
    app.add_typer(group, name=NAME)


def add_command(app: typer.Typer, name: str, command: Callable[..., Any]) -> None:
    """Add a command to the group; plugins call it in their hook ``register_commands``.

    Args:
        app: What the hook was given.
        name: What the user writes after ``meltr data``.
        command: The function.

    Raises:
        PluginError: If there is a command of that name.
    """
    group = next(each.typer_instance for each in app.registered_groups if each.name == NAME)
    assert group is not None
    if name in [each.name for each in group.registered_commands]:
        raise PluginError(f"there is a command `meltr {NAME} {name}` already")
    group.command(name)(command)
