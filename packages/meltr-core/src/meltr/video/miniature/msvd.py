"""MSVD-QA's layout: one list of questions per split, a mapping of numbers to YouTube names, and clips as AVI."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from meltr.files import write_text
from meltr.video.miniature.language import kinds, question
from meltr.video.miniature.layouts import ONE_MOVEMENT, SampleLayout, Splits, numbered
from meltr.video.miniature.scenes import Scene

FILES = {"train": "train_qa.json", "validation": "val_qa.json", "test": "test_qa.json"}


def annotate(folder: Path, splits: Splits, rng: np.random.Generator) -> dict[Path, Scene]:
    """Write questions of every kind about every clip."""
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in splits}
    mapping, clips = [], {}
    for split, number, scene in numbered(splits):
        name = f"miniature-{number:04d}_0_{scene.frames // 8}"
        mapping.append(f"{name} vid{number}")
        clips[folder / "YouTubeClips" / f"{name}.avi"] = scene
        for kind in kinds(scene):
            asked = question(scene, kind, rng)
            rows[split].append({"answer": asked.answer, "question": asked.text, "video_id": number})
    ids = iter(range(sum(map(len, rows.values()))))
    for split, questions in rows.items():
        content = [{"answer": row["answer"], "id": next(ids), **row} for row in questions]
        write_text(folder / FILES[split], json.dumps(content, indent=0))
    write_text(folder / "youtube_mapping.txt", "".join(f"{line}\n" for line in mapping))
    return clips


LAYOUT = SampleLayout(ONE_MOVEMENT, tuple(FILES), annotate)
