"""Visual codes of videos: the targets of masked video modelling, one number for each cell of each frame.

They come from VIOLET's prepared ``*_vq.pkl`` (`PreparedCodes`), from a file of ``meltr data codes``
(`meltr_violet.data.code_file.CodeFile`), or, in a synthetic sample, from the pictures themselves (`FixedCodebook`).
This module does not import torch.
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
    """Codes by key. An implementation must support pickling, because DataLoader workers hold one.

    `shape` is the shape of the codes of every video, (T, h, w).
    """

    shape: tuple[int, int, int]

    def codes(self, key: str) -> Codes:
        """Return the codes of `key`, (T, h, w), int16.

        Raises:
            KeyError: If `key` is unknown.
        """
        ...

    def __contains__(self, key: object) -> bool:
        """Return True if there are codes for `key`."""
        ...


def codes_or_ignored(source: CodeSource, key: str) -> Codes:
    """Return the codes of `key`, or -100 everywhere, which no loss counts, if `source` has none."""
    return source.codes(key) if key in source else np.full(source.shape, IGNORED, np.int16)


class PreparedCodes:
    """Codes from a prepared file of the public repository tsujuifu/pytorch_violet, in memory (490 bytes per video).

    The file is a pickled dict: name of the video -> int16 array (T, h, w), or a list of T arrays (h, w), as for
    WebVid. No code from it is run.

    Args:
        path: The file, for example ``msrvtt_vq.pkl``.

    Raises:
        UserError: If the file cannot be read, or does not hold visual codes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        content = load_pickle(path)
        if not isinstance(content, dict) or not content:
            found = "an empty dict" if content == {} else type(content).__name__
            raise malformed(path, f"it holds {found}, not a dict from names of videos to visual codes.")
        self._codes = {_name(path, key): _checked(f"{path}, {key}", value) for key, value in content.items()}
        first, shape = next((key, codes.shape) for key, codes in self._codes.items())
        for key, codes in self._codes.items():
            if codes.shape != shape:
                raise malformed(f"{path}, {key}", f"codes of shape {codes.shape}, but those of {first} are {shape}.")
        self.shape: tuple[int, int, int] = shape

    def __contains__(self, key: object) -> bool:
        """Return True if the file has codes for `key`."""
        return key in self._codes

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keys in the order of the file."""
        return iter(self._codes)

    def __len__(self) -> int:
        """Return the number of videos in the file."""
        return len(self._codes)

    def codes(self, key: str) -> Codes:
        """Return the codes of `key`, (T, h, w); raise a KeyError if it is unknown."""
        return self._codes[key]


def _name(path: Path, key: Any) -> str:
    if not isinstance(key, str):
        raise malformed(path, f"the name of a video is {key!r:.60}, not text.")
    return key


def _checked(where: str, value: Any) -> Codes:
    """Return the codes of one video as one array; raise a UserError if they are not codes."""
    try:
        codes = np.stack(value) if isinstance(value, list) else np.asarray(value)
    except ValueError as error:
        raise malformed(where, f"its frames do not fit together: {error}.")
    if codes.dtype.kind not in "iu" or codes.ndim != 3 or not codes.size:
        raise malformed(
            where, f"{codes.dtype} of shape {codes.shape} instead of whole numbers (frames, rows, columns)."
        )
    if codes.min() < 0 or codes.max() > np.iinfo(np.int16).max:
        raise malformed(where, f"codes from {codes.min()} to {codes.max()}, outside the range of any encoder.")
    return codes.astype(np.int16)


@dataclass(frozen=True)
class FixedCodebook:
    """A substitute for the discrete VAE in synthetic samples: the mean colour of a cell, quantised per channel.

    It has no learned weights, and a code describes only the colour of its cell. That is enough to predict moving shapes
    where they are masked, but not for real videos.

    Args:
        cell: Pixels on a side of the square that a code covers, `meltr_violet.model.config.ModelConfig.cell`.
        levels: Quantisation levels of each channel; there are ``levels**3`` codes.
    """

    cell: int = 32
    levels: int = 8

    @property
    def size(self) -> int:
        """Number of codes."""
        return self.levels**3

    def codes_of(self, squares: Frames) -> Codes:
        """Return the codes of pictures.

        The code is ``(r levels + g) levels + b`` with ``r = floor(levels mean(R) / 256)``, and likewise g and b.

        Args:
            squares: (T, S, S, 3), as the model sees them: padded and resized. If S is not a multiple of `cell`, the
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
