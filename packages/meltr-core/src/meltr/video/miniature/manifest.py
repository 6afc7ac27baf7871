"""The layout of the user's own data: ``manifest.jsonl``, with the keys of every task in each line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from meltr.files import write_lines
from meltr.video.miniature.cmu_mosi import FEELING, OPINIONS
from meltr.video.miniature.language import captions, kinds, question
from meltr.video.miniature.layouts import ONE_MOVEMENT, SampleLayout, Splits, numbered
from meltr.video.miniature.scenes import PLACES, Scene

CAPTIONS, QUESTIONS = 3, 3
"""Number of captions per clip, and of questions, each of a different kind. The class of a clip is its place."""


def annotate(folder: Path, splits: Splits, rng: np.random.Generator) -> dict[Path, Scene]:
    """Write one line per question; each line also has the captions, label and sentiment of its clip."""
    lines: list[dict[str, Any]] = []
    clips = {}
    opinions = tuple(OPINIONS)
    for split, number, scene in numbered(splits):
        opinion = opinions[scene.seed % len(opinions)]
        video = f"clips/{number:04d}.mp4"
        clips[folder / video] = scene
        about = {
            "captions": captions(scene, CAPTIONS, rng),
            "label": scene.place,
            "transcript": f"the {scene.thing.shape} is {opinion}",
            "score": round(OPINIONS[opinion] + FEELING[scene.thing.colour], 1),
        }
        for kind in rng.permutation(kinds(scene))[:QUESTIONS]:
            asked = question(scene, str(kind), rng)
            lines.append({"split": split, "video": video, "question": asked.text, "answer": asked.answer, **about})
    write_lines(folder / "manifest.jsonl", lines)
    return clips


LAYOUT = SampleLayout(ONE_MOVEMENT, ("train", "validation", "test"), annotate, fewest=len(PLACES))
