"""The layout of MSR-VTT for captioning: one JSON file with all clips, their splits and captions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from meltr.files import write_text
from meltr.video.miniature.language import captions
from meltr.video.miniature.layouts import ONE_MOVEMENT, SampleLayout, Splits, numbered
from meltr.video.miniature.msrvtt import CAPTIONS
from meltr.video.miniature.scenes import Scene

PARTS = {"train": "train", "validation": "validate", "test": "test"}
"""Split -> its name in the file."""


def annotate(folder: Path, splits: Splits, rng: np.random.Generator) -> dict[Path, Scene]:
    """Write ``MSRVTT_data.json``."""
    videos, sentences = [], []
    clips = {}
    for split, number, scene in numbered(splits):
        name = f"video{number - 1}"
        clips[folder / "videos" / "all" / f"{name}.mp4"] = scene
        videos.append({"video_id": name, "id": number - 1, "split": PARTS[split]})
        sentences += [{"caption": caption, "video_id": name} for caption in captions(scene, CAPTIONS, rng)]
    write_text(folder / "MSRVTT_data.json", json.dumps({"videos": videos, "sentences": sentences}, indent=0))
    return clips


LAYOUT = SampleLayout(ONE_MOVEMENT, tuple(PARTS), annotate)
