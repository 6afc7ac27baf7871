"""Synthetic samples: a few hundred generated clips of moving shapes, in the published layout of a data set.

So ``--sample`` runs the same readers, decoder and training loop as the real data. The properties that questions ask for
are drawn in equal numbers and independently. So an answer, a choice or a class can be found only by looking at the
clip, and a movement only by looking at several of its frames.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

import numpy as np

from meltr.errors import UserError, did_you_mean
from meltr.video.miniature.encoding import Progress, write_clips
from meltr.video.miniature.layouts import SampleLayout
from meltr.video.miniature.scenes import draw

VERSION = 4
"""Part of the folder name in the cache; increased with every change of the written files."""

SIZES = {"train": 320, "validation": 64, "test": 96}
"""Split -> number of clips, for the splits that the data set has."""

DATASETS = {
    "msvd": "meltr.video.miniature.msvd:LAYOUT",
    "tgif-action": "meltr.video.miniature.tgif:ACTION",
    "tgif-transition": "meltr.video.miniature.tgif:TRANSITION",
    "tgif-frame": "meltr.video.miniature.tgif:FRAME",
    "msrvtt-7k": "meltr.video.miniature.msrvtt:SEVEN_K",
    "msrvtt-9k": "meltr.video.miniature.msrvtt:NINE_K",
    "msrvtt": "meltr.video.miniature.msrvtt_qa:LAYOUT",
    "msrvtt-full": "meltr.video.miniature.msrvtt_full:LAYOUT",
    "youcook2": "meltr.video.miniature.youcook2:LAYOUT",
    "cmu-mosi": "meltr.video.miniature.cmu_mosi:LAYOUT",
    "kinetics400": "meltr.video.miniature.kinetics:LAYOUT",
    "manifest": "meltr.video.miniature.manifest:LAYOUT",
}
"""Data set -> its layout."""


def write(
    dataset: str,
    folder: Path,
    *,
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a synthetic sample of a data set atomically: completely, or not at all.

    Args:
        dataset: A key of `DATASETS`.
        folder: Destination; must be missing or empty.
        seed: The same seed gives the same annotations and the same pictures.
        sizes: Split -> number of clips, to override `SIZES`.
        progress: Called with the number of clips written so far and the number of all clips.

    Returns:
        `folder`, in the layout that `meltr.video.annotations` reads.

    Raises:
        UserError: If there is no sample of `dataset`, `sizes` is not valid for it, `folder` is not empty, or PyAV or
            Pillow is missing.
    """
    layout = _layout(dataset)
    counts = _counts(dataset, layout, sizes)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not an empty folder; nothing is written there.", "Choose another folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        splits = {
            split: draw(count, layout.movements, _rng(seed, split), layout.places) for split, count in counts.items()
        }
        write_clips(layout.annotate(beside, splits, _rng(seed, "words")), progress)
        beside.chmod(0o755)
        beside.replace(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


def splits_of(dataset: str) -> tuple[str, ...]:
    """Return the splits that the sample of a data set has; UserError if it has no sample."""
    return tuple(_layout(dataset).splits)


def cached(dataset: str, *, seed: int = 0, progress: Progress | None = None) -> Path:
    """Return the folder of a synthetic sample in the user's cache, and write it first if it is missing.

    The cache is ``$MELTR_CACHE``, or ``meltr`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.

    Args:
        dataset: A key of `DATASETS`.
        seed: As for `write`.
        progress: As for `write`.

    Raises:
        UserError: As `write`.
    """
    folder = cache_folder() / "miniature" / f"{dataset}-{seed}-v{VERSION}"
    if folder.is_dir():
        return folder
    try:
        return write(dataset, folder, seed=seed, progress=progress)
    except OSError:
        if folder.is_dir():  # another process has written the same sample meanwhile
            return folder
        raise


def cache_folder() -> Path:
    """Return the folder in which meltr caches files that it can regenerate."""
    chosen = os.environ.get("MELTR_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "meltr"


def _layout(dataset: str) -> SampleLayout:
    if dataset not in DATASETS:
        raise UserError(f"there is no synthetic sample of {dataset!r}.", did_you_mean(dataset, DATASETS))
    module, name = DATASETS[dataset].split(":")
    found = getattr(import_module(module), name)
    assert isinstance(found, SampleLayout)
    return found


def _counts(dataset: str, layout: SampleLayout, sizes: Mapping[str, int] | None) -> dict[str, int]:
    unknown = [split for split in sizes or {} if split not in layout.splits]
    if unknown:
        raise UserError(f"{dataset} has no split {unknown[0]!r}.", did_you_mean(unknown[0], layout.splits))
    counts = {split: (sizes or {}).get(split, SIZES[split]) for split in layout.splits}
    for split, count in counts.items():
        fewest = layout.fewest if split == "train" else 1
        if count < fewest:
            raise UserError(f"{count} clips for {split} of {dataset} are too few.", f"Give at least {fewest}.")
    return counts


def _rng(seed: int, purpose: str) -> np.random.Generator:
    digest = hashlib.blake2b(f"{seed}:{purpose}".encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))
