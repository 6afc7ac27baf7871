"""The file that ``meltr data codes`` writes: visual codes of a data set, and how they were made. Imports no torch.

One safetensors file: the array ``codes``, (N, T, h, w), int16, and in its metadata, under ``meltr``, JSON with the keys
of the rows, the settings, the encoder's fingerprint, and the videos that could not be decoded.
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
from meltr_violet.data.codes import Codes

FORMAT = 1
"""Version of the layout."""

MAKE_AGAIN = "Delete it and make it again: meltr data codes."


@dataclass(frozen=True)
class CodeSettings:
    """Of which pictures codes are made.

    Args:
        frames: Frames a video.
        sampler: Which ones: one of `SAMPLERS` (meltr.video), or ``prepared`` for those of prepared files.
        size: Pixels on a side of the squares that the model sees; a code stands for 32 x 32 of them.
        encoder: Fingerprint of the encoder's weights.
    """

    frames: int
    sampler: str
    size: int
    encoder: str

    def text(self) -> str:
        """Return the settings as a user reads them."""
        return f"{self.frames} frames a video ({self.sampler}), {self.size} pixels, encoder {self.encoder[:12]}"


@dataclass
class CodeTable:
    """Codes while they are collected.

    Args:
        settings: How they are made.
        rows: Key -> codes, (T, h, w).
        failed: Key -> why the video could not be decoded.
    """

    settings: CodeSettings
    rows: dict[str, Codes] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write the file beside and rename it; makes the folder."""
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
    """A `meltr_violet.data.codes.CodeSource` on such a file, kept in memory.

    Args:
        path: The file.

    Raises:
        UserError: If it is not there, broken, or something else.
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
            raise UserError(f"{path} is damaged: {len(self._rows):,} keys, codes of shape {array.shape}.", MAKE_AGAIN)
        self._array = array
        self.shape: tuple[int, int, int] = (array.shape[1], array.shape[2], array.shape[3])

    def __contains__(self, key: object) -> bool:
        """Tell whether `key` has codes here."""
        return key in self._rows

    def __iter__(self) -> Iterator[str]:
        """Go through the keys in the order of the file."""
        return iter(self._rows)

    def __len__(self) -> int:
        """Videos in the file."""
        return len(self._rows)

    def codes(self, key: str) -> Codes:
        """Return the codes of `key`, (T, h, w); KeyError if it is unknown."""
        codes: Codes = self._array[self._rows[key]]
        return codes

    def table(self) -> CodeTable:
        """Return its content, to be added to."""
        return CodeTable(self.settings, {key: self.codes(key) for key in self})


def _read(path: Path) -> tuple[Any, Any]:
    """Return the index and the array of a file."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"There is no file of visual codes {path}.", "Make it with: meltr data codes")
    try:
        with safe_open(path, framework="numpy") as content:
            index = json.loads((content.metadata() or {}).get("meltr", "{}"))
            if index.get("format") == FORMAT:
                return index, content.get_tensor("codes")
    except (SafetensorError, OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {type(error).__name__}: {error}.", MAKE_AGAIN) from error
    raise UserError(
        f"{path} is a safetensors file, but not of visual codes in the format {FORMAT} of this meltr.",
        "Give one that `meltr data codes` wrote.",
    )
