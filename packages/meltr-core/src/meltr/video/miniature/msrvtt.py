"""MSR-VTT's layout: one JSON file with all captions, a list of training clips, and the JSFusion test pairs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from meltr.files import write_text
from meltr.video.miniature.language import captions
from meltr.video.miniature.layouts import ONE_MOVEMENT, SampleLayout, Splits, numbered
from meltr.video.miniature.scenes import Scene

CAPTIONS = 5
"""Number of captions per clip (20 in MSR-VTT)."""


def annotate(folder: Path, splits: Splits, rng: np.random.Generator, *, listed: str) -> dict[Path, Scene]:
    """Write ``MSRVTT_data.json``, the training list `listed` and ``MSRVTT_JSFUSION_test.csv``."""
    videos, sentences, names = [], [], []
    pairs: list[tuple[str, str, str, str]] = []
    clips = {}
    for split, number, scene in numbered(splits):
        name = f"video{number - 1}"
        clips[folder / "videos" / "all" / f"{name}.mp4"] = scene
        videos.append({"video_id": name, "id": number - 1, "split": split})
        described = captions(scene, CAPTIONS, rng)
        sentences += [{"caption": caption, "video_id": name} for caption in described]
        if split == "train":
            names.append((name,))
        else:
            pairs.append((f"ret{len(pairs)}", f"msr{number - 1}", name, described[0]))
    numbered_sentences = [{**sentence, "sen_id": number} for number, sentence in enumerate(sentences)]
    write_text(folder / "MSRVTT_data.json", json.dumps({"videos": videos, "sentences": numbered_sentences}, indent=0))
    write_text(folder / listed, _csv([("video_id",), *names]))
    write_text(folder / "MSRVTT_JSFUSION_test.csv", _csv([("key", "vid_key", "video_id", "sentence"), *pairs]))
    return clips


def _csv(rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


SEVEN_K = SampleLayout(ONE_MOVEMENT, ("train", "test"), partial(annotate, listed="MSRVTT_train.7k.csv"))
NINE_K = SampleLayout(ONE_MOVEMENT, ("train", "test"), partial(annotate, listed="MSRVTT_train.9k.csv"))
