"""UniVL's own data pipeline, reproduced: every pipeline.json below MELTR_GOLDENS.

Texts, captions, clips and generated text are compared with what the released loaders made of the same input, with the
vocabulary of bert-base-uncased.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from meltr.video.corpus import Item
from meltr.video.text.wordpiece import Tokenizer
from meltr_univl.examples import Clips, Examples, Texts
from meltr_univl.features import FeatureRecord, Features
from meltr_univl.texts import Wording
from places import golden_root, golden_sets, optional, published_vocabulary

NAMES = {
    "input_ids": "text",
    "attention_mask": "text_mask",
    "video_mask": "video_mask",
    "input_caption_ids": "caption_input",
    "decoder_mask": "caption_mask",
    "output_caption_ids": "caption_output",
}
"""Name in the file -> ours."""


def pipelines() -> list[Path]:
    """Return every pipeline.json of UniVL."""
    files = [folder / "pipeline.json" for folder in golden_sets("univl", "pipeline.json")]
    return [file for file in files if "youcook_retrieval" in file.read_text()]


NONE = f"no pipeline.json of UniVL below {golden_root('univl')} (set MELTR_GOLDENS)"


class Numbered:
    """Features whose vector number i holds i: which ones a clip has can be read off."""

    path = Path("numbered")
    record = FeatureRecord(width=1)

    def __init__(self, count: int) -> None:
        self.count = count

    def __contains__(self, key: object) -> bool:
        return True

    def features(self, key: str) -> Features:
        return np.arange(self.count, dtype=np.float32)[:, None]


@pytest.fixture(scope="module", params=optional(pipelines(), NONE), ids=lambda path: path.parent.name)
def pipeline(request: pytest.FixtureRequest) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(request.param.read_text(encoding="utf-8"))
    return content


@pytest.fixture(scope="module")
def wording(pipeline: dict[str, Any]) -> Wording:
    return Wording(Tokenizer(published_vocabulary(), length=pipeline["settings"]["max_words"]))


def test_pieces(pipeline: dict[str, Any], wording: Wording) -> None:
    for case in pipeline["tokenize"]:
        assert wording.pieces(case["text"]) == case["ids"], case["text"]


def test_generated_text(pipeline: dict[str, Any], wording: Wording) -> None:
    for case in pipeline["detokenize"]:
        assert wording.words(case["ids"]) == case["text"]


def as_item(case: dict[str, Any]) -> Item:
    """The item that a sample of the released loaders is about."""
    caption = next(case[name] for name in ("text", "sentence", "first_caption") if name in case)
    span = (case["start"], case["end"]) if "start" in case else None
    return Item(media="video", id="0", captions=(caption,), transcript=case.get("transcript"), span=span)


def test_samples(pipeline: dict[str, Any], wording: Wording) -> None:
    """Each sample of each section: YouCook2 and MSR-VTT, retrieval and captioning, at one and two vectors a second."""
    sections = {name: cases for name, cases in pipeline.items() if name.startswith(("youcook", "msrvtt"))}
    assert sections
    for section, cases in sections.items():
        name, _, rate = section.partition(".framerate")
        texts = Texts("captioning" if "caption" in name else "retrieval", wording, inputs="v+t")
        for case in cases:
            clips = Clips(Numbered(case["n_features"]), pipeline["settings"]["max_frames"], rate=float(rate or 1))
            found = Examples([as_item(case)], texts=texts, clips=clips)[0]
            wanted = case["expected"]
            for theirs, ours in NAMES.items():
                if theirs in wanted:
                    assert found[ours].tolist() == wanted[theirs], (section, theirs)
            assert wanted["token_type_ids"] == [0] * len(wanted["input_ids"])
            frames = wanted["frame_numbers"]
            assert found["video"][:, 0].tolist() == frames + [0] * (clips.length - len(frames)), section
