"""Kinetics-400's layout: one CSV file per split, one folder of clips per class."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from meltr.files import write_text
from meltr.video.miniature.language import LABELS
from meltr.video.miniature.layouts import DARK, ONE_MOVEMENT, SampleLayout, Splits, numbered
from meltr.video.miniature.scenes import Scene

FILES = {"train": "train.csv", "test": "val.csv"}
"""Results are reported on ``val.csv``: the labels of the official test set were withheld."""


def annotate(folder: Path, splits: Splits, rng: np.random.Generator) -> dict[Path, Scene]:
    """Write the label of every clip: its movement."""
    lines = {split: ["label,youtube_id,time_start,time_end,split"] for split in splits}
    clips = {}
    for split, number, scene in numbered(splits):
        label = LABELS[scene.movements[0].name]
        name, start = f"miniature{number:04d}", int(rng.integers(100))
        part = FILES[split].removesuffix(".csv")
        clips[folder / part / label.replace(" ", "_") / f"{name}_{start:06d}_{start + 10:06d}.mp4"] = scene
        lines[split].append(f"{label},{name},{start},{start + 10},{part}")
    for split, content in lines.items():
        write_text(folder / FILES[split], "\n".join(content) + "\n")
    return clips


LAYOUT = SampleLayout(ONE_MOVEMENT, tuple(FILES), annotate, DARK, fewest=len(ONE_MOVEMENT))
