"""Compute the visual codes of a data set with the discrete VAE's encoder, and store them in a file."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from meltr.data.processes import map_in_order
from meltr.errors import MeltrError, UserError
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

Progress = Callable[[int, int, int], None]
"""Called with the number of videos done, the total, and the number that could not be decoded."""


class CodeReport(NamedTuple):
    """Result of `fill_codes`.

    Args:
        total: Videos that were requested.
        added: Videos encoded now; the others were already in the file, or failed.
        failed: Key -> why the video could not be decoded.
    """

    total: int
    added: int
    failed: Mapping[str, str]


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
) -> Iterator[tuple[str, Codes | str]]:
    """Yield the key of each video with its codes, or with the reason why it could not be decoded.

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
    results = map_in_order(prepare, videos.items(), workers=workers, died=_crashed)
    with contextlib.closing(results):
        for (key, _), squares in results:
            waiting.append((key, squares))
            if len(waiting) == clips:
                yield from _encoded(encoder, waiting, device)
                waiting = []
    yield from _encoded(encoder, waiting, device)


def _squares(video: tuple[str, FrameSource], side: int) -> Frames | str:
    """Return the pictures that the encoder sees, (T, side, side, 3), or the reason why the video cannot be decoded."""
    key, source = video
    try:
        return padded_squares(source.frames(key), side)
    except MeltrError as error:
        return error.message
    except Exception as error:  # a broken file can make the decoder raise anything
        return f"{key}: {type(error).__name__}: {error}"


def _crashed(video: tuple[str, FrameSource]) -> str:
    return f"{video[0]} crashes the decoder, or needs more memory than there is"


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
) -> CodeReport:
    """Compute the codes that a file lacks, and add them to it.

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
    table = _table(path, settings)
    todo = {key: source for key, source in videos.items() if key not in table.rows}
    done = len(videos) - len(todo)
    added = 0
    if progress is not None:
        progress(done, len(videos), 0)
    try:
        made = compute(encoder, todo, size=settings.size, device=device, workers=workers)
        for number, (key, codes) in enumerate(made, done + 1):
            if isinstance(codes, str):
                table.failed[key] = codes
            else:
                table.rows[key] = codes
                added += 1
            if number % SAVED == 0 and table.rows:
                table.write(path)
            if progress is not None:
                progress(number, len(videos), len(table.failed))
    finally:
        if todo and table.rows:
            table.write(path)
    if videos and len(table.failed) == len(videos):
        key, reason = next(iter(table.failed.items()))
        raise UserError(f"None of the {len(videos):,} videos can be decoded. The first, {key}: {reason}")
    return CodeReport(len(videos), added, table.failed)


def _table(path: Path, settings: CodeSettings) -> CodeTable:
    """Return the content of the file, or an empty table if it does not exist."""
    if not path.exists():
        return CodeTable(settings)
    found = CodeFile(path)
    if found.settings != settings:
        raise UserError(
            f"{path} holds codes of {found.settings.text()}, but {settings.text()} were requested.",
            "Choose another file for the new codes, or delete this one.",
        )
    return found.table()
