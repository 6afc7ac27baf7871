"""YouCook2's layout: videos of two steps with one sentence each, and transcripts that name only the shape.

So a caption needs the video for colour, movement and place, and the transcript helps with the shape.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from meltr.files import write_text
from meltr.video.miniature.encoding import RATE
from meltr.video.miniature.language import DOES, WHERE, pick
from meltr.video.miniature.layouts import TWO_PHASES, SampleLayout, Splits, numbered
from meltr.video.miniature.scenes import Scene

SUBSETS = {"train": "training", "test": "validation"}
"""Split -> subset."""

SAYS = ("now look at the {shape}", "here we have a {shape}", "and this is what the {shape} does")


def annotate(folder: Path, splits: Splits, rng: np.random.Generator) -> dict[Path, Scene]:
    """Write ``youcookii_annotations_trainval.json`` and ``transcripts.json``."""
    database: dict[str, Any] = {}
    said: dict[str, Any] = {}
    clips = {}
    for split, number, scene in numbered(splits):
        name = f"cook{number:04d}"
        clips[folder / "videos" / f"{name}.mp4"] = scene
        half, end = round(scene.frames / 2) / RATE, scene.frames / RATE
        spans = [[0.0, half], [half, end]]
        steps = [
            {"segment": span, "id": place, "sentence": _sentence(scene, place, rng)} for place, span in enumerate(spans)
        ]
        database[name] = {"subset": SUBSETS[split], "duration": end, "recipe_type": "0", "annotations": steps}
        lines = [pick(SAYS, rng).format(shape=scene.thing.shape) for _ in spans]
        said[name] = [
            {"start": start, "end": stop, "text": line} for (start, stop), line in zip(spans, lines, strict=True)
        ]
    write_text(folder / "youcookii_annotations_trainval.json", json.dumps({"database": database}, indent=0))
    write_text(folder / "transcripts.json", json.dumps(said, indent=0))
    return clips


def _sentence(scene: Scene, step: int, rng: np.random.Generator) -> str:
    does, where = pick(DOES[scene.movements[step].name], rng), WHERE[scene.place][0]
    return f"the {scene.thing.colour} {scene.thing.shape} {does} {where}"


LAYOUT = SampleLayout(TWO_PHASES, tuple(SUBSETS), annotate)
