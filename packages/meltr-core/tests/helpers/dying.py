"""Functions for worker processes that die on the way."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from meltr.video.frame_cache import CacheSettings, writer

encode = writer._encode


def square_or_die(number: int) -> int:
    if number % 10 == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def encode_or_die(path: Path, settings: CacheSettings) -> writer.Encoded | str:
    if path.stem == "bomb":
        os.kill(os.getpid(), signal.SIGKILL)
    return encode(path, settings)
