"""Compute the visual codes of a data set with the discrete VAE's encoder, and store them in a file."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Generator, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch

from meltr.video.extraction import FillReport, Progress, attempt, check_same, fill
from meltr.video.frames.pictures import padded_squares
from meltr.video.frames.source import Frames, FrameSource
from meltr_violet.data.code_file import CodeFile, CodeSettings, CodeTable
from meltr_violet.data.codes import Codes
from meltr_violet.model.dvae import SHRINKS, CodeEncoder

CELL = 32
"""Pixels on a side of the square of the model's picture that a code covers."""

CLIPS = 16
"""Videos per forward pass of the encoder."""

SAVED = 1024
"""Number of videos between two writes of the file."""


def fingerprint(encoder: CodeEncoder) -> str:
    """Return a digest of the weights. It does not depend on the file format that they came from."""
    digest = hashlib.sha256()
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def compute(
    encoder: CodeEncoder,
    videos: Mapping[str, FrameSource],
    *,
    size: int = 224,
    device: torch.device | str = "cpu",
    workers: int = 0,
    clips: int = CLIPS,
) -> Generator[tuple[str, Codes | str], None, None]:
    """Yield key and codes of each video, or why it could not be decoded.

    Frames are padded to squares and resized in one step to 8 pixels for every 32 of the model's picture, as in the code
    published with Fu et al. 2021.

    Args:
        encoder: The encoder.
        videos: Key -> frame source of the video; with `workers`, it should be cheap to pickle.
        size: Pixels on a side of the model's picture; a multiple of 32.
        device: Device of the encoder.
        workers: Number of decoding processes; 0: decode in this process.
        clips: Videos per forward pass of the encoder.

    Raises:
        ValueError: If `size` is not a multiple of 32.
    """
    if size < CELL or size % CELL:
        raise ValueError(f"size={size} is not a multiple of {CELL}")
    encoder = encoder.to(device)
    prepare = partial(_squares, side=size // CELL * SHRINKS)
    waiting: list[tuple[str, Frames | str]] = []
    with contextlib.closing(attempt(videos, prepare, workers=workers)) as results:
        for result in results:
            waiting.append(result)
            if len(waiting) == clips:
                yield from _encoded(encoder, waiting, device)
                waiting = []
    yield from _encoded(encoder, waiting, device)


def _squares(key: str, source: FrameSource, side: int) -> Frames:
    """Return the pictures that the encoder sees, (T, side, side, 3)."""
    return padded_squares(source.frames(key), side)


def _encoded(
    encoder: CodeEncoder, clips: list[tuple[str, Frames | str]], device: torch.device | str
) -> Iterator[tuple[str, Codes | str]]:
    pictures = [squares for _, squares in clips if not isinstance(squares, str)]
    codes: list[Codes] = []
    if pictures:
        batch = torch.from_numpy(np.concatenate(pictures)).to(device).permute(0, 3, 1, 2)
        found = encoder.codes(batch).cpu().numpy().astype(np.int16)
        codes = np.split(found, np.cumsum([len(each) for each in pictures])[:-1])
    rest = iter(codes)
    yield from ((key, squares if isinstance(squares, str) else next(rest)) for key, squares in clips)


def fill_codes(
    videos: Mapping[str, FrameSource],
    path: Path,
    encoder: CodeEncoder,
    settings: CodeSettings,
    *,
    device: torch.device | str = "cpu",
    workers: int = 0,
    progress: Progress | None = None,
) -> FillReport:
    """Compute the codes that a file lacks, and add them.

    The whole file is written every 1,024 videos, at the end, and on interruption, so the next call resumes the work.
    Videos that cannot be decoded are listed in the file, and the next call tries them again.

    Args:
        videos: Key -> frame source of the video.
        path: The file of codes. New codes are added to an existing file.
        encoder: The encoder.
        settings: Settings of the codes, with the `fingerprint` of `encoder`.
        device: Device of the encoder.
        workers: Number of decoding processes.
        progress: Callback for progress.

    Raises:
        UserError: If the file is not a file of codes, if its codes have other settings, or if no video can be decoded.
    """
    make = partial(compute, encoder, size=settings.size, device=device, workers=workers)
    return fill(videos, _Codes(path, settings), make, progress=progress)


class _Codes:
    """The codes of a file, held in memory and written periodically.

    Args:
        path: The file.
        settings: Settings of the codes.

    Raises:
        UserError: If the file is not a file of codes, or its codes have other settings.
    """

    def __init__(self, path: Path, settings: CodeSettings) -> None:
        self._path = path
        self._table = CodeTable(settings)
        self._unsaved = 0
        if path.exists():
            found = CodeFile(path)
            check_same(path, found.settings, settings, of="codes of")
            self._table = found.table()

    def __contains__(self, key: str) -> bool:
        return key in self._table.rows

    def add(self, key: str, codes: Codes) -> None:
        """Store the codes of a video."""
        self._table.rows[key] = codes
        self._count()

    def fail(self, key: str, reason: str) -> None:
        """Record why a video has no codes."""
        self._table.failed[key] = reason
        self._count()

    def close(self, *, complete: bool) -> None:
        """Write codes that are not in the file yet, also after an interruption."""
        if self._unsaved:
            self._save()

    def _count(self) -> None:
        self._unsaved += 1
        if self._unsaved >= SAVED:
            self._save()

    def _save(self) -> None:
        if self._table.rows:
            self._table.write(self._path)
            self._unsaved = 0
