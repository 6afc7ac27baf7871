"""Registration of UniVL's commands. Imports no torch."""

from __future__ import annotations

import typer

from meltr.hookspecs import hookimpl
from meltr_univl import commands


@hookimpl
def register_commands(app: typer.Typer) -> None:
    """Add ``meltr data features``."""
    commands.register(app)
