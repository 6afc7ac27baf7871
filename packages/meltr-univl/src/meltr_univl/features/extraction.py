"""Compute the features of a data set and store them in a folder: one ``.npy`` per video, and how they were made."""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from meltr.errors import UserError
from meltr.files import write_bytes
from meltr.video.extraction import FillReport, Progress, attempt, check_same, fill
from meltr.video.frames.source import Frames
from meltr_univl.features.extractors import Extractor, open_extractor
from meltr_univl.features.files import stem
from meltr_univl.features.moments import moments
from meltr_univl.features.reading import RECORD, FeatureRecord, Features, read_record, write_record

CLIPS = 16
"""Clips per forward pass of the network."""


@dataclass(frozen=True)
class Recipe:
    """Arguments of `meltr_univl.features.extractors.open_extractor`, for use in another process.

    Args:
        extractor: Name of the extractor.
        weights: Its weights.
        device: Its device.
    """

    extractor: str = "auto"
    weights: Path | None = None
    device: str = "cpu"


def extract(path: Path, extractor: Extractor) -> Features:
    """Return the features of a video or image, (F, D): one vector for each clip. The last clip is padded.

    Raises:
        UserError: If the file cannot be decoded.
    """
    found: list[Features] = []
    waiting: list[Frames] = []
    for clip in moments(path, rate=extractor.rate, frames=extractor.frames, prepare=extractor.prepare):
        waiting.append(clip)
        if len(waiting) == CLIPS:
            found.append(extractor.vectors(np.stack(waiting)))
            waiting = []
    if waiting:
        found.append(extractor.vectors(np.stack(waiting)))
    return np.concatenate(found)


def fill_features(
    videos: Mapping[str, Path], folder: Path, recipe: Recipe, *, workers: int = 0, progress: Progress | None = None
) -> FillReport:
    """Compute the features that a folder lacks.

    Each file is written as a whole when it is complete, so the next call resumes the work. Videos that cannot be
    decoded are listed in ``features.json``, and the next call tries them again.

    Args:
        videos: Key -> file. The features of ``clips/a.mp4`` are written to ``clips/a.npy``.
        folder: Output folder.
        recipe: How the features are made.
        workers: Number of processes that decode and compute; 0: this process does.
        progress: Callback for progress.

    Raises:
        UserError: If the folder holds features that were made in another way, two videos would share a file, or no
            video can be decoded.
    """
    extractor = _opened(recipe)
    record = FeatureRecord(extractor.width, extractor.name, extractor.rate, extractor.weights)
    _check_same(folder, record)
    store = _Folder(folder, record, _files(videos, folder))
    work = functools.partial(_of_video, recipe=recipe, threads=None if workers < 2 else 1)
    return fill(videos, store, functools.partial(attempt, work=work, workers=workers), progress=progress)


class _Folder:
    """A folder of features, with one file per video.

    Args:
        folder: The folder; ``features.json`` is written immediately.
        record: How the features are made.
        files: Key -> file of its features.
    """

    def __init__(self, folder: Path, record: FeatureRecord, files: Mapping[str, Path]) -> None:
        self._folder, self._record, self._files = folder, record, files
        self._failed: dict[str, str] = {}
        write_record(folder, record)

    def __contains__(self, key: str) -> bool:
        return self._files[key].is_file()

    def add(self, key: str, features: Features) -> None:
        """Write the features of a video."""
        stream = io.BytesIO()
        np.save(stream, features)
        write_bytes(self._files[key], stream.getvalue())

    def fail(self, key: str, reason: str) -> None:
        """Record in ``features.json`` why a video has no features."""
        self._failed[key] = reason
        write_record(self._folder, replace(self._record, failed=self._failed))

    def close(self, *, complete: bool) -> None:
        """Do nothing: every file is already complete."""


def _check_same(folder: Path, record: FeatureRecord) -> None:
    known = read_record(folder)
    if known is not None:
        check_same(folder, known, record, of="features of")
    elif folder.is_dir() and any(folder.rglob("*.npy")):
        raise UserError(
            f"{folder} holds features, but no {RECORD} to say how they were made.", "Choose another folder."
        )


def _files(videos: Mapping[str, Path], folder: Path) -> dict[str, Path]:
    """Return key -> file of its features; raise a UserError if two keys would share one."""
    owners: dict[Path, str] = {}
    for key in videos:
        file = folder / f"{stem(key)}.npy"
        if folder.resolve() not in file.resolve().parents:
            file = folder / f"{Path(stem(key)).name}.npy"
        if file in owners:
            raise UserError(
                f"{owners[file]} and {key} would share the file {file}.", "Give one of the videos another name."
            )
        owners[file] = key
    return {key: file for file, key in owners.items()}


def _of_video(key: str, path: Path, recipe: Recipe, threads: int | None) -> Features:
    if threads is not None:
        torch.set_num_threads(threads)
    return extract(path, _opened(recipe))


@functools.lru_cache(maxsize=1)
def _opened(recipe: Recipe) -> Extractor:
    """Return the extractor of this process, loaded once."""
    return open_extractor(recipe.extractor, recipe.weights, device=recipe.device)
