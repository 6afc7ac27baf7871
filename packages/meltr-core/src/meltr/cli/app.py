"""The ``meltr`` command: assembles the commands and shows errors as one clear message.

Exit codes: 0 success; 1 a run or a plugin failed; 2 the input is wrong; 124 the time of --max-time is up; 129, 130,
138, 143 a signal (SIGHUP, Ctrl-C, SIGUSR1, SIGTERM); 141 the output pipe was closed.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from meltr.cli._processes import is_first
from meltr.errors import MeltrError, StoppedRun
from meltr.plugins import Registry, discover
from meltr.plugins.blame import blame_of
from meltr.plugins.discovery import CHOSEN
from meltr.version import __version__

COMMANDS = (
    *("run", "evaluate", "plot", "compare", "recipes", "table", "sweep", "data", "verify", "bench", "helps"),
    *("diagnose", "list_", "config", "doctor", "new_backbone", "card", "push"),
)
"""Modules of `meltr.cli`, in the order of ``meltr --help``."""

_DEBUG = "meltr.debug"
_NO_PLUGINS = "--no-plugins"
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_FULL = {errno.ENOSPC, errno.EDQUOT}


@dataclass
class State:
    """Content of ``context.obj`` for all commands.

    Args:
        registry: The plugins found.
    """

    registry: Registry


class MeltrGroup(TyperGroup):
    """The command group: accepts ``--debug`` and ``--no-plugins`` anywhere, and shows errors without a traceback."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Remove ``--debug`` and ``--no-plugins``, wherever they are before ``--``."""
        end = args.index("--") if "--" in args else len(args)
        ctx.meta[_DEBUG] = "--debug" in args[:end]
        kept = [word for word in args[:end] if word not in ("--debug", _NO_PLUGINS)] + args[end:]
        if not kept and not ctx.meta[_DEBUG]:
            kept = ["--help"]
        return super().parse_args(ctx, kept)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with _clear_errors(debug=ctx.meta[_DEBUG]):
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result


def build_app(registry: Registry | None = None) -> typer.Typer:
    """Return the command line with the commands of core and of plugins.

    Args:
        registry: The plugins; None: find the installed ones.
    """
    known = discover() if registry is None else registry
    app = typer.Typer(
        name="meltr",
        cls=MeltrGroup,
        help="Train on the loss that matters with the losses that might help.",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def root(
        ctx: typer.Context,
        version: Annotated[
            bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
        ] = False,
        debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of errors.")] = False,
        no_plugins: Annotated[
            bool, typer.Option(_NO_PLUGINS, help="Load no installed plugin; MELTR_PLUGINS=a,b loads these alone.")
        ] = False,
    ) -> None:
        ctx.obj = State(known)

    for name in COMMANDS:
        if importlib.util.find_spec(f"meltr.cli.{name}"):
            importlib.import_module(f"meltr.cli.{name}").register(app)
    known.register_commands(app)
    return app


def main() -> None:
    """Run the command line: the ``meltr`` script."""
    # Waiting threads that spin slow a run down when another process needs the core. Threads that never spin slow a
    # small model down, because they must be woken for every operation. So they spin briefly.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    if _NO_PLUGINS in sys.argv[: sys.argv.index("--") if "--" in sys.argv else None]:
        os.environ[CHOSEN] = ""  # before they are loaded, and for the processes of a run
    with _clear_errors(debug="--debug" in sys.argv, leave=sys.exit):
        app = build_app()
    app(prog_name="meltr")


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"meltr {__version__}")
        raise typer.Exit


def _leave(code: int) -> None:
    raise typer.Exit(code)


@contextlib.contextmanager
def _clear_errors(*, debug: bool, leave: Any = _leave) -> Iterator[None]:
    """Show known errors as a message; anything else is a bug and keeps its traceback."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("\ninterrupted", err=True)
        leave(130)
    except StoppedRun as stopped:
        if not stopped.told and is_first():
            typer.echo(f"{stopped}{'' if stopped.state else ' before the run began; nothing was written'}", err=True)
        leave(stopped.exit_code)
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        leave(141)
    except Exception as error:
        answer = _answer(error)
        if answer is None:
            raise
        if debug:
            traceback.print_exception(error)
        message, hint, code = answer
        typer.echo(typer.style("error: ", fg="red", bold=True) + message, err=True)
        if hint:
            typer.echo("\n".join(f"  {line}" for line in hint.splitlines()), err=True)
        leave(code)


def _hint_of(path: str) -> str:
    """Return what to set so that another path is used."""
    hint = "Check the path, or choose another folder with --output-dir, --out or --data-root."
    cache = os.environ.get("MELTR_CACHE")
    return (
        f"MELTR_CACHE is {cache}; set it to a folder that can be written." if cache and path.startswith(cache) else hint
    )


def _answer(error: Exception) -> tuple[str, str | None, int] | None:
    """Return message, hint and exit code of a known error; None for a bug."""
    if isinstance(error, MeltrError):
        return error.message, error.hint, error.exit_code
    if isinstance(error, OSError) and error.errno in _FULL:
        where = f" while writing {error.filename}" if error.filename else ""
        return f"the disk is full{where}", "Free some space, or choose another folder with --output-dir.", 1
    if isinstance(error, OSError) and error.errno in _DENIED:
        hint = "Check the permissions, or choose another folder with --output-dir or --data-root."
        return f"no permission: {error.filename or error}", hint, 2
    if isinstance(error, OSError) and error.filename is not None and error.errno is not None:
        # A path that cannot be used: a file where a folder is needed, a name that is too long, a circle of links.
        what = f"cannot use {error.filename}: {error.strerror}"
        return what, _hint_of(str(error.filename)), 2
    if type(error).__name__ == "OutOfMemoryError":
        hint = "Lower --batch-size, or use --set precision=bf16."
        return f"the device ran out of memory: {str(error).splitlines()[0]}", hint, 1
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error)):
        found = re.search(r"tried to allocate (\d+) bytes", str(error))
        what = f"{int(found[1]):,} bytes are not available" if found else "the memory is full"
        return f"out of memory: {what}", "Use a smaller model or batch (--set batch_size=...).", 1
    if isinstance(error, RuntimeError) and (found := re.match(r"(\S+) does not have a deterministic", str(error))):
        hint = "Run without --deterministic (--set deterministic=false), or replace that operation in the plugin."
        return f"the operation {found[1]} has no deterministic implementation on this device", hint, 1
    blame = blame_of(error)
    if blame is not None:
        return blame[0], "\n".join(part for part in (blame[1], "Add --debug to see the traceback.") if part), 1
    return None
