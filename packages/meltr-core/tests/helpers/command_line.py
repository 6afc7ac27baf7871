"""Calls of the command line in the process of the test, without the seconds that a new process takes."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import typer
from typer.testing import CliRunner, Result

from meltr.cli.app import build_app
from meltr.plugins import discover
from meltr.plugins.discovery import CHOSEN

Call = Callable[..., Result]


def call(*words: object, app: typer.Typer | None = None, plots: bool = False) -> Result:
    """Return what ``meltr WORDS`` prints and how it ends.

    Args:
        words: The words after ``meltr``, of any type that `str` takes.
        app: The command line; None: that of the installed plugins.
        plots: Let a run draw its plots at its end. They take several times as long as a small run, so tests of
            anything else do without.
    """
    if app is None:
        app = _installed(importlib.metadata.entry_points, os.environ.get(CHOSEN), tuple(sys.path))
    with patch("typer.testing._get_command", _command), nullcontext() if plots else patch("meltr.cli._jobs._draw"):
        return CliRunner().invoke(app, [str(word) for word in words])


@lru_cache(maxsize=8)
def _installed(*found_by: object) -> typer.Typer:
    """Return the command line of the installed plugins, made once for all that decides which ones there are."""
    return build_app()


@lru_cache(maxsize=8)
def _command(app: typer.Typer) -> Any:
    """Return the commands of an app, without reading the annotations of all of them at every call."""
    return typer.main.get_command(app)


def command_line(*plugins: Path) -> Call:
    """Return a `call` of one command line with the plugins in files, for several calls."""
    app = build_app(discover(plugins))
    return lambda *words, **how: call(*words, app=app, **how)


def assert_stopped(result: Result, *messages: str) -> None:
    """Check that a command stopped because its input is wrong, and that the user can tell why.

    Args:
        result: What `call` returned: its exit code is 2, and it shows no traceback.
        messages: What has to be on standard error.
    """
    assert result.exit_code == 2, result.output
    assert "error" in result.stderr.lower(), result.output
    for message in messages:
        assert message in result.stderr
    assert "Traceback" not in result.stderr
