"""Visual codes of videos: the targets of masked video modelling, a number for each cell of each frame.

They come from VIOLET's prepared ``*_vq.pkl`` (`PreparedCodes`), from what ``meltr data codes`` wrote
(`meltr_violet.data.code_file.CodeFile`), or, in miniatures, from the pictures themselves (`FixedCodebook`). Imports no
torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from meltr.data.safe_pickle import load_pickle
from meltr.metrics.classification import IGNORED
from meltr.video.annotations.parsing import malformed
from meltr.video.frames.source import Frames

Codes = npt.NDArray[np.int16]
"""Codes of one video, shape (T, h, w), 0 ... 8191 with OpenAI's encoder."""


@runtime_checkable
class CodeSource(Protocol):
    """Codes by key. Implementations can be pickled, so that DataLoader workers may hold one.

    `shape` is that of the codes of every video, (T, h, w).
    """

    shape: tuple[int, int, int]

    def codes(self, key: str) -> Codes:
        """Return the codes of `key`, (T, h, w), int16.

        Raises:
            KeyError: If `key` is unknown.
        """
        ...

    def __contains__(self, key: object) -> bool:
        """Tell whether `key` has codes here."""
        ...


def codes_or_ignored(source: CodeSource, key: str) -> Codes:
    """Return the codes of `key`, or -100 everywhere, which no loss counts, if `source` has none."""
    return source.codes(key) if key in source else np.full(source.shape, IGNORED, np.int16)


class PreparedCodes:
    """Codes of a prepared file of the public repository tsujuifu/pytorch_violet, kept in memory (490 bytes a video).

    The file is a pickled dict: name of the video -> int16 array (T, h, w), or a list of T arrays (h, w), as for
    WebVid. No code of it is run.

    Args:
        path: Such as ``msrvtt_vq.pkl``.

    Raises:
        UserError: If it cannot be read, or holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        content = load_pickle(path)
        if not isinstance(content, dict) or not content:
            found = "an empty dict" if content == {} else type(content).__name__
            raise malformed(path, f"it holds {found}, not visual codes by the name of the video.")
        self._codes = {_name(path, key): _checked(f"{path}, {key}", value) for key, value in content.items()}
        first, shape = next((key, codes.shape) for key, codes in self._codes.items())
        for key, codes in self._codes.items():
            if codes.shape != shape:
                raise malformed(f"{path}, {key}", f"codes of shape {codes.shape}, but {shape} for {first}.")
        self.shape: tuple[int, int, int] = shape

    def __contains__(self, key: object) -> bool:
        """Tell whether `key` has codes here."""
        return key in self._codes

    def __iter__(self) -> Iterator[str]:
        """Go through the keys in the order of the file."""
        return iter(self._codes)

    def __len__(self) -> int:
        """Videos in the file."""
        return len(self._codes)

    def codes(self, key: str) -> Codes:
        """Return the codes of `key`, (T, h, w); KeyError if it is unknown."""
        return self._codes[key]


def _name(path: Path, key: Any) -> str:
    if not isinstance(key, str):
        raise malformed(path, f"the name of a video is {key!r:.60}, not text.")
    return key


def _checked(where: str, value: Any) -> Codes:
    """Return the codes of one video as one array; UserError if they are none."""
    try:
        codes = np.stack(value) if isinstance(value, list) else np.asarray(value)
    except ValueError as error:
        raise malformed(where, f"its frames do not fit together: {error}.")
    if codes.dtype.kind not in "iu" or codes.ndim != 3 or not codes.size:
        raise malformed(
            where, f"{codes.dtype} of shape {codes.shape} instead of whole numbers (frames, rows, columns)."
        )
    if codes.min() < 0 or codes.max() > np.iinfo(np.int16).max:
        raise malformed(where, f"codes from {codes.min()} to {codes.max()}, beyond those of any encoder.")
    return codes.astype(np.int16)


@dataclass(frozen=True)
class FixedCodebook:
    """Stands in for the discrete VAE, in miniatures only: the mean colour of a cell, each channel in a few levels.

    It has no learned weights, and tells no more of a picture than its colours: enough for moving shapes to be
    predicted where they are masked, not for real videos.

    Args:
        cell: Pixels on a side of the square that a code stands for, `meltr_violet.model.config.ModelConfig.cell`.
        levels: Levels of each channel; there are ``levels**3`` codes.
    """

    cell: int = 32
    levels: int = 8

    @property
    def size(self) -> int:
        """Number of codes."""
        return self.levels**3

    def codes_of(self, squares: Frames) -> Codes:
        """Return the codes of pictures.

        The code is ``(r levels + g) levels + b`` with ``r = floor(levels mean(R) / 256)``, and so on.

        Args:
            squares: (T, S, S, 3), as the model sees them: padded and resized. Where S is no multiple of `cell`, the
                cells of the last row and column are smaller.

        Returns:
            (T, ceil(S / cell), ceil(S / cell)).
        """
        starts = np.arange(0, squares.shape[1], self.cell)
        totals = np.add.reduceat(np.add.reduceat(squares.astype(np.int64), starts, axis=1), starts, axis=2)
        lengths = np.diff(starts, append=squares.shape[1])
        pixels = np.outer(lengths, lengths)[None, :, :, None]
        level = totals * self.levels // (256 * pixels)
        codes = (level[..., 0] * self.levels + level[..., 1]) * self.levels + level[..., 2]
        return np.asarray(codes, dtype=np.int16)
