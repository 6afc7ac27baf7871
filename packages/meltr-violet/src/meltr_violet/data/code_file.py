"""The file that ``meltr data codes`` writes: the visual codes of a data set, and how they were made.

It is one safetensors file with the array ``codes``, (N, T, h, w), int16. Its metadata has, under ``meltr``, JSON with
the keys of the rows, the settings, the encoder's fingerprint, and the videos that could not be decoded. This module
does not import torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from meltr.errors import UserError
from meltr.files import write_bytes
from meltr.limits import UnreadableError, from_json
from meltr_violet.data.codes import Codes

FORMAT = 1
"""Version of the file format."""

MAKE_AGAIN = "Delete it and make it again: meltr data codes."


@dataclass(frozen=True)
class CodeSettings:
    """Settings that the codes were made with.

    Args:
        frames: Frames per video.
        sampler: How frames were chosen: one of `SAMPLERS` (meltr.video), or ``prepared`` for those of prepared files.
        size: Pixels on a side of the square picture that the model sees; a code covers 32 x 32 pixels of it.
        encoder: Fingerprint of the encoder's weights.
    """

    frames: int
    sampler: str
    size: int
    encoder: str

    def text(self) -> str:
        """Return the settings in words, for messages."""
        return f"{self.frames} frames per video ({self.sampler}), {self.size} pixels, encoder {self.encoder[:12]}"


@dataclass
class CodeTable:
    """Codes of a data set in memory, while they are computed.

    Args:
        settings: Settings of the codes.
        rows: Key -> codes, (T, h, w).
        failed: Key -> why the video could not be decoded.
    """

    settings: CodeSettings
    rows: dict[str, Codes] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write a temporary file and rename it. The folder is created if needed."""
        from safetensors.numpy import save

        index = {
            "format": FORMAT,
            "keys": list(self.rows),
            "settings": asdict(self.settings),
            "failed": self.failed,
        }
        metadata = {"meltr": json.dumps(index, ensure_ascii=False)}
        write_bytes(path, save({"codes": np.stack(list(self.rows.values()))}, metadata=metadata))


class CodeFile:
    """A `meltr_violet.data.codes.CodeSource` that holds the content of such a file in memory.

    Args:
        path: The file.

    Raises:
        UserError: If the file is missing, damaged, or not a file of codes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        index, array = _read(path)
        try:
            self.settings = CodeSettings(**index["settings"])
            self.failed: Mapping[str, str] = dict(index["failed"])
            self._rows = {key: number for number, key in enumerate(index["keys"])}
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is damaged: {type(error).__name__}: {error}.", MAKE_AGAIN) from error
        if array.ndim != 4 or len(array) != len(self._rows):
            raise UserError(
                f"{path} is damaged: {len(self._rows):,} keys, but codes of shape {array.shape}.", MAKE_AGAIN
            )
        self._array = array
        self.shape: tuple[int, int, int] = (array.shape[1], array.shape[2], array.shape[3])

    def __contains__(self, key: object) -> bool:
        """Return True if the file has codes for `key`."""
        return key in self._rows

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keys in the order of the file."""
        return iter(self._rows)

    def __len__(self) -> int:
        """Return the number of videos in the file."""
        return len(self._rows)

    def codes(self, key: str) -> Codes:
        """Return the codes of `key`, (T, h, w); raise a KeyError if it is unknown."""
        codes: Codes = self._array[self._rows[key]]
        return codes

    def table(self) -> CodeTable:
        """Return the content as a table that codes can be added to."""
        return CodeTable(self.settings, {key: self.codes(key) for key in self})


def _read(path: Path) -> tuple[Any, Any]:
    """Return the JSON index and the array of a file."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"There is no file of visual codes {path}.", "Make it with: meltr data codes")
    try:
        with safe_open(path, framework="numpy") as content:
            index = from_json((content.metadata() or {}).get("meltr", "{}"), path)
            if index.get("format") == FORMAT:
                return index, content.get_tensor("codes")
    except UnreadableError as error:
        raise UserError(error.message, MAKE_AGAIN) from error
    except (SafetensorError, OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {type(error).__name__}: {error}.", MAKE_AGAIN) from error
    raise UserError(
        f"{path} is a safetensors file, but not a file of visual codes in format {FORMAT}, which this meltr reads.",
        "Give a file that `meltr data codes` wrote.",
    )
