"""Old names of modules that have moved: they lead to the new ones, and say so."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any


def leading_to(module: str, *, old: str) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a module that has moved.

    Args:
        module: Its new name.
        old: Its old name.
    """

    def find(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {old!r} has no attribute {name!r}")
        found = getattr(importlib.import_module(module), name)
        warnings.warn(f"{old} is now {module}: import {name} from there.", DeprecationWarning, stacklevel=2)
        return found

    return find
