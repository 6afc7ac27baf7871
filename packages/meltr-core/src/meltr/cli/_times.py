"""Lengths of time as users write them."""

from __future__ import annotations

import re

from meltr.errors import UserError

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST = 10 * 365 * 86400


def seconds_of(text: str | None) -> float | None:
    """Return the seconds of ``90``, ``45m``, ``1.5h``, ``30:00`` or ``1:30:00``; None for None.

    Raises:
        UserError: If it is something else, or not above zero.
    """
    if text is None:
        return None
    number = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)", text.strip())
    clock = re.fullmatch(r"(?:([0-9]+):)?([0-9]{1,2}):([0-9]{2})", text.strip())
    seconds = 0.0
    if number:
        seconds = float(number[1]) * _UNITS[number[2]]
    elif clock:
        seconds = int(clock[1] or 0) * 3600 + int(clock[2]) * 60 + int(clock[3])
    if not 0 < seconds <= _LONGEST:
        raise UserError(
            f"--max-time {text!r} is not a length of time", "For example: --max-time 90 (seconds), 45m, 12h or 1:30:00"
        )
    return seconds
