"""What the tests of All-in-one's data share: sizes of a small run, frames by hand, and who they belong to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from meltr.context import Data
from meltr.video.frames.media import decode
from meltr.video.frames.sampling import middles

S, R = 48, 57
"""Side of a frame, and before it is cropped: int(1.2 S)."""

SMALL = {"frames": 2, "image_size": S, "text_length": 24, "sampling": "uniform", "augmentation": "none"}

DRAWING = {"sampling": "random", "augmentation": "crop", "false_videos": "dataset", "false_texts": 3}
"""Everything is drawn that can be."""

ALL = {"data": {"validation": 0}, "train": {"batch_size": 1}}
"""Settings with which an epoch holds every training example."""


def epoch(data: Data, number: int = 0, start: int = 0) -> dict[str, Tensor]:
    """Return an epoch of training in one."""
    batches = list(data.train.batches(number, start))
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def by_hand(file: Path, indices: list[int]) -> np.ndarray:
    """Return frames resized to R x R and cropped in the middle, (T, 3, S, S)."""
    pictures = []
    for frame in decode(file, lambda total: indices).frames:
        resized = Image.fromarray(frame).resize((R, R), Image.Resampling.BILINEAR)
        edge = round((R - S) / 2)
        pictures.append(np.asarray(resized)[edge : edge + S, edge : edge + S].transpose(2, 0, 1))
    return np.stack(pictures)


def frames_in(file: Path) -> int:
    return decode(file, lambda total: [0]).total


def owner(corpus: Any, count: int = 2) -> dict[bytes, str]:
    """Return pixels of the middle frames of every segment -> key of the video."""
    return {by_hand(path, list(middles(frames_in(path), count))).tobytes(): key for key, path in corpus.media.items()}


def owners(rows: Tensor, known: dict[bytes, str]) -> list[str]:
    return [known[row.contiguous().numpy().tobytes()] for row in rows]


def write_manifest(folder: Path, clips: list[Path], rows: list[dict[str, Any]]) -> Path:
    """Write a manifest whose i-th line is about the i-th clip, which is copied beside it."""
    folder.mkdir(exist_ok=True)
    lines = []
    for clip, row in zip(clips, rows, strict=True):
        shutil.copy(clip, folder)
        lines.append(json.dumps({"video": clip.name, **row}) + "\n")
    (folder / "manifest.jsonl").write_text("".join(lines))
    return folder
