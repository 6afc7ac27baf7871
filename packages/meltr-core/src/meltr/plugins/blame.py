"""Whose code an exception comes from: plugin, hook, file and line, in place of the frames of core and pluggy."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pluggy

from meltr.errors import MeltrError

CORE = Path(__file__).parents[1]
"""The folder of core; its frames are not the plugin's own."""

_MARK = "__meltr_blame__"


def homes(manager: pluggy.PluginManager) -> list[Path]:
    """Return the file or the top folder of the package of every plugin in `manager`, without core."""
    found = []
    for plugin in manager.get_plugins():
        name = getattr(plugin, "__name__", None) or type(plugin).__module__
        module = sys.modules.get(str(name))
        file = getattr(module, "__file__", None)
        if module is None or file is None:
            continue
        top = sys.modules.get(str(name).partition(".")[0])
        path = getattr(top, "__file__", None) if "." in str(name) else None
        found.append(Path(file) if path is None else Path(path).parent)
    return [home for home in found if home != CORE]


@contextlib.contextmanager
def blamed(label: str, hook: str, homes: Sequence[Path]) -> Iterator[None]:
    """Mark an exception that leaves a hook, without changing its type, which others may wait for.

    Args:
        label: Who implements the hook, such as ``plugin 'mine'``.
        hook: Name of the hook.
        homes: Where the code of plugins lies.
    """
    try:
        yield
    except MeltrError:
        raise
    except Exception as error:
        if not hasattr(error, _MARK):
            where = place(error, homes)
            text = f"{label}, hook {hook}: {type(error).__name__}: {str(error).strip() or 'no message'}"
            with contextlib.suppress(AttributeError, TypeError):  # An exception with slots cannot be marked.
                setattr(error, _MARK, (text, where))
            error.add_note(f"Raised in {label}, hook {hook}{f' ({where})' if where else ''}.")
        raise


def place(error: BaseException, homes: Sequence[Path]) -> str:
    """Return file, line and code of the plugin's last frame; empty if it has none."""
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if any(Path(frame.filename) == home or home in Path(frame.filename).parents for home in homes)
    ]
    return f"{own[-1].filename}, line {own[-1].lineno}: {own[-1].line}" if own else ""


def blame_of(error: BaseException) -> tuple[str, str] | None:
    """Return what an exception says, with plugin and hook, and the place; None if no hook raised it."""
    found: tuple[str, str] | None = getattr(error, _MARK, None)
    return found


def trace(manager: pluggy.PluginManager) -> None:
    """Print every call of a hook, who answers it, and how long it takes, to standard error."""
    import time

    started: list[float] = []

    def before(hook: str, implementations: Sequence[Any], arguments: object) -> None:
        started.append(time.perf_counter())

    def after(outcome: Any, hook: str, implementations: Sequence[Any], arguments: object) -> None:
        seconds = time.perf_counter() - started.pop()
        named = [f"{each.plugin_name} ({_where(each.function)})" for each in reversed(implementations)]
        failed = "" if outcome.exception is None else f", raised {type(outcome.exception).__name__}"
        line = f"[plugins] {hook}: {', '.join(named) or 'nobody'}, {1000 * seconds:.1f} ms{failed}"
        print(line, file=sys.stderr, flush=True)

    manager.add_hookcall_monitoring(before, after)


def _where(function: Any) -> str:
    code = getattr(function, "__code__", None)
    return "no source" if code is None else f"{code.co_filename}:{code.co_firstlineno}"
