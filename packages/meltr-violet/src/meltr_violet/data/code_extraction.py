"""Make the visual codes of a data set with the discrete VAE's encoder, and keep them in a file."""

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
"""Pixels on a side of the square of the model's picture that a code stands for."""

CLIPS = 16
"""Videos that go through the encoder at a time."""

SAVED = 1024
"""Videos after which the file is written."""

Progress = Callable[[int, int, int], None]
"""Called with the videos done, all there are, and how many of those done could not be decoded."""


class CodeReport(NamedTuple):
    """What `fill_codes` did.

    Args:
        total: Videos that were asked for.
        added: Those encoded now; the others were there already, or failed.
        failed: Key -> why the video could not be decoded.
    """

    total: int
    added: int
    failed: Mapping[str, str]


def fingerprint(encoder: CodeEncoder) -> str:
    """Return a digest of the weights, whatever file they came from."""
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
    """Yield key and codes of each video, or why it could not be decoded.

    Frames are padded to squares and resized at once to 8 pixels for each 32 of the model's picture, as in the code
    published with Fu et al. 2021.

    Args:
        encoder: The encoder.
        videos: Key -> source that knows it; with `workers`, one that is cheap to pickle.
        size: Pixels on a side of the model's picture; a multiple of 32.
        device: Where the encoder runs.
        workers: Processes that decode; 0: this one does.
        clips: Videos that are encoded at a time.

    Raises:
        ValueError: If `size` is no multiple of 32.
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
    """Return the pictures that the encoder sees, (T, side, side, 3), or what is wrong with the video."""
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
    """Make the codes that a file lacks, and add them.

    The file is written every 1,024 videos and when the work ends or is broken off, each time whole: the next call goes
    on there. Videos that cannot be decoded are named in the file and tried again by the next call.

    Args:
        videos: Key -> source that knows it.
        path: The file; it is added to if it is there.
        encoder: The encoder.
        settings: How codes are made, with the `fingerprint` of `encoder`.
        device: Where the encoder runs.
        workers: Processes that decode.
        progress: Told how far it is.

    Raises:
        UserError: If the file is something else or holds codes that were made otherwise, or no video can be decoded.
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
        raise UserError(f"None of {len(videos):,} videos can be decoded. The first, {key}: {reason}")
    return CodeReport(len(videos), added, table.failed)


def _table(path: Path, settings: CodeSettings) -> CodeTable:
    """Return what the file holds; an empty table where there is none."""
    if not path.exists():
        return CodeTable(settings)
    found = CodeFile(path)
    if found.settings != settings:
        raise UserError(
            f"{path} holds codes of {found.settings.text()}; asked for were {settings.text()}.",
            "Choose another file for the new codes, or delete this one.",
        )
    return found.table()
