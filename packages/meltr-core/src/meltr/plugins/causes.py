"""What went wrong in a plugin, in a line."""

from __future__ import annotations

import re
import traceback
from pathlib import Path

from pydantic import ValidationError

from meltr.errors import MeltrError

_FOREIGN = re.compile(rf"^<|pluggy|pydantic|importlib|^{re.escape(str(Path(__file__).parent))}")
"""Files whose frames are not the plugin's own."""


def cause_of(error: BaseException) -> str:
    """Return an exception in one line: its type, its message, and the line of the plugin that raised it."""
    if isinstance(error, MeltrError):
        return ". ".join(part.rstrip(".").replace("\n", " ") for part in (error.message, error.hint) if part)
    if isinstance(error, ValidationError):
        text = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        text = f"{error.title}: {text}"
    else:
        text = f"{type(error).__name__}: {error}".strip().split("\n")[0]
    frames = [each for each in traceback.extract_tb(error.__traceback__) if not _FOREIGN.search(each.filename)]
    return f"{text} ({frames[-1].filename}, line {frames[-1].lineno})" if frames else text
