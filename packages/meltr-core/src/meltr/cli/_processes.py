"""The processes of a command that torchrun started."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meltr.parallel.ranks import Ranks


def several() -> bool:
    """Tell whether torchrun started more than one process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first() -> bool:
    """Tell whether this is rank 0, the process that writes files and prints."""
    return int(os.environ.get("RANK", "0")) == 0


def restarted() -> bool:
    """Tell whether torchrun restarted the processes after one of them died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextlib.contextmanager
def together(device: str, timeout: float | None = None) -> Iterator[Ranks | None]:
    """Join the processes that torchrun started; None if there is only this one (torch is then not imported).

    Args:
        device: Of the run.
        timeout: Seconds that a process waits for the others in an exchange.
    """
    if not several():
        yield None
        return
    from meltr.parallel.ranks import joined

    with joined(device, timeout=timeout) as ranks:
        yield ranks
