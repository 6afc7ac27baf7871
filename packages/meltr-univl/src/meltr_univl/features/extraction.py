"""Compute the features of a data set and store them in a folder: one ``.npy`` per video, and how they were made."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from meltr.data.processes import map_in_order
from meltr.errors import MeltrError, UserError
from meltr.files import write_bytes
from meltr.video.frames.source import Frames
from meltr_univl.features.extractors import Extractor, open_extractor
from meltr_univl.features.files import stem
from meltr_univl.features.moments import moments
from meltr_univl.features.reading import RECORD, FeatureRecord, Features, read_record, write_record

CLIPS = 16
"""Clips per forward pass of the network."""

Progress = Callable[[int, int, int], None]
"""Called with the number of videos done, the total, and the number that could not be decoded."""


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


class FeatureReport(NamedTuple):
    """Result of `fill_features`.

    Args:
        total: Videos that were requested.
        added: Videos done now; the others were already in the folder, or failed.
        record: How the features were made.
    """

    total: int
    added: int
    record: FeatureRecord


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
) -> FeatureReport:
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
    files = _files(videos, folder)
    todo = {key: path for key, path in videos.items() if not files[key].is_file()}
    failed: dict[str, str] = {}
    done = len(videos) - len(todo)
    added = 0
    write_record(folder, record)
    if progress is not None:
        progress(done, len(videos), 0)
    for number, (key, features) in enumerate(_computed(todo, recipe, workers), done + 1):
        if isinstance(features, str):
            failed[key] = features
            write_record(folder, replace(record, failed=failed))
        else:
            _write(files[key], features)
            added += 1
        if progress is not None:
            progress(number, len(videos), len(failed))
    if videos and len(failed) == len(videos):
        key, reason = next(iter(failed.items()))
        raise UserError(f"None of the {len(videos):,} videos can be decoded. The first, {key}: {reason}")
    return FeatureReport(len(videos), added, replace(record, failed=failed))


def _check_same(folder: Path, record: FeatureRecord) -> None:
    known = read_record(folder)
    if known is not None and known != record:
        raise UserError(
            f"{folder} holds features of {known.text()}, but {record.text()} were requested.",
            "Choose another folder for the new features, or delete this one.",
        )
    if known is None and folder.is_dir() and any(folder.rglob("*.npy")):
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


def _write(file: Path, features: Features) -> None:
    stream = io.BytesIO()
    np.save(stream, features)
    write_bytes(file, stream.getvalue())


def _computed(videos: Mapping[str, Path], recipe: Recipe, workers: int) -> Iterator[tuple[str, Features | str]]:
    """Yield the key of each video with its features, or with the reason why there are none."""
    work = functools.partial(_of_video, recipe=recipe, threads=None if workers < 2 else 1)
    for (key, _), features in map_in_order(work, videos.items(), workers=workers, died=_crashed):
        yield key, features


def _of_video(video: tuple[str, Path], recipe: Recipe, threads: int | None) -> Features | str:
    if threads is not None:
        torch.set_num_threads(threads)
    key, path = video
    try:
        return extract(path, _opened(recipe))
    except MeltrError as error:
        return error.message
    except Exception as error:  # a broken file can make the decoder raise anything
        return f"{key}: {type(error).__name__}: {error}"


def _crashed(video: tuple[str, Path]) -> str:
    return f"{video[0]} crashes the decoder, or needs more memory than there is"


@functools.lru_cache(maxsize=1)
def _opened(recipe: Recipe) -> Extractor:
    """Return the extractor of this process, loaded once."""
    return open_extractor(recipe.extractor, recipe.weights, device=recipe.device)
