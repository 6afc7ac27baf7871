"""MSRVTT-QA: both published forms say the same, and the clips are those of MSR-VTT."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from annotation_files import touch
from meltr.errors import UserError
from meltr.video import miniature
from meltr.video.annotations import read

QUESTIONS = {
    "train": [("what is a man doing?", "talk", 0), ("who is singing?", "man", 0), ("what is falling?", "snow", 1)],
    "val": [("who runs?", "man", 2)],
    "test": [("what burns?", "elephant", 3), ("who talks?", "man", 3)],
}


def write_lists(root: Path) -> Path:
    number = 0
    for split, rows in QUESTIONS.items():
        records = []
        for text, answer, video in rows:
            records.append({"answer": answer, "category_id": 7, "id": number, "question": text, "video_id": video})
            number += 1
        root.mkdir(exist_ok=True)
        (root / f"{split}_qa.json").write_text(json.dumps(records))
    return with_clips(root)


def write_lines(root: Path) -> Path:
    folder = root / "annotations"
    folder.mkdir(parents=True)
    for split, rows in QUESTIONS.items():
        lines = [json.dumps({"question": q, "answer": a, "video_id": f"video{v}"}) + "\n" for q, a, v in rows]
        (folder / f"msrvtt_qa_{split}.jsonl").write_text("".join(lines))
    return with_clips(root)


def with_clips(root: Path) -> Path:
    touch(root / "TrainValVideo", ["video0.mp4", "video1.mp4", "video2.mp4"])
    touch(root / "videos" / "all", ["video3.mp4"])
    return root


@pytest.mark.parametrize("write", [write_lists, write_lines])
def test_both_forms(write, tmp_path):
    corpus = read("msrvtt", "qa", write(tmp_path / "data"))
    assert corpus.answers == ("man", "snow", "talk")
    found = {
        split: [(item.question, item.answer, item.media) for item in items] for split, items in corpus.splits.items()
    }
    names = {"train": "train", "val": "validation", "test": "test"}
    assert found == {
        names[split]: [(text, answer, f"video{video}") for text, answer, video in rows]
        for split, rows in QUESTIONS.items()
    }
    assert corpus.media["video3"] == tmp_path / "data" / "videos" / "all" / "video3.mp4"
    assert any("Answers outside the vocabulary of 3" in note for note in corpus.notes)
    for items in corpus.splits.values():
        assert len({item.id for item in items}) == len(items)


def test_a_question_without_its_clip_is_named(tmp_path):
    root = write_lists(tmp_path / "data")
    rows = json.loads((root / "val_qa.json").read_text())
    del rows[0]["video_id"]
    (root / "val_qa.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match=r"val_qa\.json, record 1: no 'video_id'"):
        read("msrvtt", "qa", root)


def test_the_miniature_asks_about_every_clip(tmp_path):
    """Five questions a clip, each of another kind, so that answers cannot be told by the clip alone."""
    root = miniature.write("msrvtt", tmp_path / "data", sizes={"train": 6, "validation": 2, "test": 3})
    corpus = read("msrvtt", "qa", root)
    asked = Counter(item.media for items in corpus.splits.values() for item in items)
    assert asked == Counter({f"video{number}": 5 for number in range(11)})
