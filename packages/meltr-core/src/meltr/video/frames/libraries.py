"""Libraries of the extra ``video``, imported on first use."""

from __future__ import annotations

import importlib
from types import ModuleType

from meltr.errors import UserError

_LIBRARIES = {"av": "PyAV", "PIL.Image": "Pillow", "PIL.ImageOps": "Pillow"}


def require(module: str) -> ModuleType:
    """Import a library of the extra ``video``; if it is missing, UserError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        name = _LIBRARIES[module]
        raise UserError(
            f"Reading videos and images needs {name}, which is not installed.",
            "Install it with: pip install 'meltr-core[video]'",
        ) from None
