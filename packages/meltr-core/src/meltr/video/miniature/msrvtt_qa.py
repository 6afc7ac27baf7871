"""MSRVTT-QA's layout: one list of questions per split, and clips named by the numbers in the questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from meltr.files import write_text
from meltr.video.miniature.language import kinds, question
from meltr.video.miniature.layouts import ONE_MOVEMENT, SampleLayout, Splits, numbered
from meltr.video.miniature.msvd import FILES
from meltr.video.miniature.scenes import Scene


def annotate(folder: Path, splits: Splits, rng: np.random.Generator) -> dict[Path, Scene]:
    """Write questions of every kind about every clip."""
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in splits}
    clips, count = {}, 0
    for split, number, scene in numbered(splits):
        clips[folder / "videos" / "all" / f"video{number - 1}.mp4"] = scene
        for kind in kinds(scene):
            asked = question(scene, kind, rng)
            words = {"answer": asked.answer, "category_id": 0, "id": count, "question": asked.text}
            rows[split].append({**words, "video_id": number - 1})
            count += 1
    for split, questions in rows.items():
        write_text(folder / FILES[split], json.dumps(questions, indent=0))
    return clips


LAYOUT = SampleLayout(ONE_MOVEMENT, tuple(FILES), annotate)
