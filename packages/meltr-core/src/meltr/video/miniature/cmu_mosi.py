"""CMU-MOSI's layout: ``index.tsv`` and one clip per utterance. Colour and words each determine half of the sentiment.

Colours and words are drawn independently, so the video alone or the text alone reveals only half.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from meltr.files import write_text
from meltr.video.miniature.encoding import RATE
from meltr.video.miniature.language import pick
from meltr.video.miniature.layouts import ONE_MOVEMENT, SampleLayout, Splits, numbered
from meltr.video.miniature.scenes import Scene, balanced

FOLDS = {"train": "train", "validation": "valid", "test": "test"}
"""Split -> fold."""

FEELING: Mapping[str, float] = {"red": -1.5, "purple": -0.9, "blue": -0.3, "white": 0.3, "yellow": 0.9, "green": 1.5}
"""Colour of the moving shape -> its contribution to the sentiment."""

OPINIONS: Mapping[str, float] = {"awful": -1.5, "poor": -0.9, "dull": -0.3, "fine": 0.3, "good": 0.9, "great": 1.5}
"""Word -> its contribution to the sentiment."""

SAYS = (
    "WELL I THINK THE {shape} IS {opinion}",
    "THE {shape} WAS REALLY {opinion}",
    "SO THAT {shape} UM IT IS {opinion}",
)


def annotate(folder: Path, splits: Splits, rng: np.random.Generator) -> dict[Path, Scene]:
    """Write ``index.tsv``, with words in capitals as in the original and the times of each utterance."""
    rows = [("row", "video", "segment", "start", "end", "intensity", "fold_standard", "words")]
    opinions = {split: balanced(tuple(OPINIONS), len(scenes), rng) for split, scenes in splits.items()}
    clips = {}
    for split, number, scene in numbered(splits):
        opinion, colour = opinions[split].pop(), scene.thing.colour
        words = pick(SAYS, rng).format(shape=scene.thing.shape.upper(), opinion=opinion.upper())
        score = OPINIONS[opinion] + FEELING[colour]
        video = f"speaker{number:03d}"
        clips[folder / "Segmented" / f"{video}_1.mp4"] = scene
        times = ("0.0", f"{scene.frames / RATE:.3f}")
        rows.append((str(number - 1), video, "1", *times, f"{score:.1f}", FOLDS[split], words))
    write_text(folder / "index.tsv", "".join("\t".join(row) + "\n" for row in rows))
    return clips


LAYOUT = SampleLayout(ONE_MOVEMENT, tuple(FOLDS), annotate)
