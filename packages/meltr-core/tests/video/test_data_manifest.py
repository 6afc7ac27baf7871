"""The user's manifest: every task, every mistake, and the real data sets that come with one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from annotation_files import touch
from meltr import UserError
from meltr.video.annotations import read
from meltr.video.corpus import Item
from places import shared


def write(root: Path, *lines: object) -> Path:
    """Write a manifest; text stands as it is, anything else becomes JSON. All files that it names are there."""
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (root / "manifest.jsonl").write_text(text + "\n", encoding="utf-8")
    touch(root / "clips", ["a.mp4", "b.mp4", "c.mp4", "d.png"])
    return root


def refused(task: str, root: Path, **options) -> UserError:
    with pytest.raises(UserError) as caught:
        read("manifest", task, root, **options)
    return caught.value


def test_retrieval_groups_the_captions_of_a_file(tmp_path):
    write(
        tmp_path,
        {"split": "train", "video": "clips/a.mp4", "captions": ["a cat", "a cat sits"]},
        "",
        {"split": "train", "video": "./clips/a.mp4", "captions": "a third one"},
        {"split": "dev", "image": "clips/d.png", "captions": ["a dog"]},
        {"split": "test", "video": "clips/b.mp4", "captions": ["a bird"], "label": "bird"},
    )
    corpus = read("manifest", "retrieval", tmp_path)
    assert corpus.splits["train"] == (
        Item(media="clips/a.mp4", id="1", captions=("a cat", "a cat sits", "a third one")),
    )
    assert list(corpus.splits) == ["train", "validation", "test"]
    assert corpus.media == {name: tmp_path / name for name in ("clips/a.mp4", "clips/d.png", "clips/b.mp4")}
    assert corpus.answers == ()


def test_open_questions(tmp_path):
    def line(split, answer):
        return {"split": split, "video": "clips/a.mp4", "question": "what?", "answer": answer}

    write(tmp_path, line("train", "zebra"), line("train", "cat"), line("train", " cat "), line("valid", "dog"))
    corpus = read("manifest", "qa", tmp_path)
    assert corpus.answers == ("cat", "zebra")
    assert [item.answer for item in corpus.splits["train"]] == ["zebra", "cat", "cat"]
    assert any("1 of 1 in validation" in note for note in corpus.notes)
    assert any("1 files of train stand in validation or test too: clips/a.mp4" in note for note in corpus.notes)


def test_questions_with_choices(tmp_path):
    choices = ["run", "jump", "swim"]
    write(
        tmp_path, {"split": "train", "video": "clips/a.mp4", "question": "what?", "answer": "jump", "choices": choices}
    )
    corpus = read("manifest", "qa", tmp_path)
    assert corpus.splits["train"][0].correct == 1
    assert corpus.splits["train"][0].choices == tuple(choices)
    assert corpus.answers == ()


@pytest.mark.parametrize("task", ["action", "classification"])
def test_labels(tmp_path, task):
    write(
        tmp_path,
        {"split": "train", "video": "clips/a.mp4", "label": "other", "id": "first"},
        {"split": "train", "video": "clips/b.mp4", "label": "fight"},
        {"split": "valid", "video": "clips/c.mp4", "label": "fight"},
    )
    corpus = read("manifest", task, tmp_path)
    assert corpus.answers == ("fight", "other")
    assert [item.id for item in corpus.splits["train"]] == ["first", "2"]


@pytest.mark.parametrize("task", ["action", "classification", "retrieval", "captioning", "sentiment"])
def test_questions_are_for_qa_alone(tmp_path, task):
    """Question and answer would be taken for the text and the class of the other task."""
    whole = {"question": "what?", "answer": "a", "choices": ["a", "b"], "label": "x", "captions": "c", "score": 1}
    write(tmp_path, {"split": "train", "video": "clips/a.mp4", **whole})
    (item,) = read("manifest", task, tmp_path).splits["train"]
    assert (item.question, item.answer, item.choices, item.correct) == (None, None, (), None)
    (item,) = read("manifest", "qa", tmp_path).splits["train"]
    assert (item.question, item.answer, item.choices, item.correct) == ("what?", "a", ("a", "b"), 0)


def test_the_manifest_may_be_named_itself_and_lie_elsewhere(tmp_path):
    write(tmp_path, {"split": "train", "video": "../clips/a.mp4", "label": "x"})
    (tmp_path / "lists").mkdir()
    moved = (tmp_path / "manifest.jsonl").rename(tmp_path / "lists" / "mine.jsonl")
    corpus = read("manifest", "action", moved)
    assert corpus.media["../clips/a.mp4"].resolve() == (tmp_path / "clips" / "a.mp4").resolve()


GOOD = {"split": "train", "video": "clips/a.mp4", "question": "what?", "answer": "cat"}


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ({**GOOD, "caption": "x"}, "unknown key 'caption'", "Did you mean 'captions'?"),
        ({**GOOD, "split": "trian"}, "unknown split 'trian'", "Did you mean 'train'?"),
        ({**GOOD, "split": ["train"]}, "unknown split ['train']", "train"),
        ({key: GOOD[key] for key in ("video", "question", "answer")}, "no 'split'", "train"),
        ({key: GOOD[key] for key in ("split", "question", "answer")}, "neither 'video' nor 'image'", "relative"),
        ({**GOOD, "image": "clips/d.png"}, "both 'video' and 'image'", "one of them"),
        ({key: GOOD[key] for key in ("split", "video", "question")}, "no 'answer'", "'question' and 'answer'"),
        ({**GOOD, "answer": 3}, "'answer' is 3, not text", "in quotes"),
        ({**GOOD, "question": " "}, "'question' is ' ', not text", "text"),
        ({**GOOD, "choices": ["dog", "bird"]}, "the answer 'cat' is not among the choices", "dog, bird"),
        ({**GOOD, "choices": ["cat", "cat", "dog"]}, "a choice is there twice", "different"),
        ({**GOOD, "choices": []}, "'choices' is [], not a list of texts", "list"),
        ({**GOOD, "choices": ["cat", "dog"]}, "2 choices, but 0 in the lines before", "all lines or in none"),
        ({**GOOD, "id": "1"}, "id '1' is that of line 1 too", "unique"),
        ("[1, 2]", "list instead of an object", "one JSON object"),
        ('{"split": "train",', "not valid JSON", "one JSON object"),
    ],
)
def test_mistakes_are_named_with_their_line(tmp_path, line, message, hint):
    error = refused("qa", write(tmp_path, GOOD, "", line))
    assert f"{tmp_path / 'manifest.jsonl'}, line 3: {message}" in error.message
    assert hint in error.hint


def test_a_task_that_the_lines_have_nothing_for(tmp_path):
    error = refused("retrieval", write(tmp_path, GOOD))
    assert "line 1: no 'captions'" in error.message


def test_a_class_that_is_not_in_train(tmp_path):
    lines = [{"split": split, "video": "clips/a.mp4", "label": split} for split in ("train", "test")]
    assert "1 classes of test are not in train: test" in refused("action", write(tmp_path, *lines)).message


def test_no_training_lines(tmp_path):
    assert "split train" in refused("qa", write(tmp_path, {**GOOD, "split": "test"})).message
    assert "split train" in refused("qa", write(tmp_path)).message


def test_missing_files(tmp_path):
    write(
        tmp_path,
        GOOD,
        {**GOOD, "video": "clips/gone.mp4"},
        {**GOOD, "video": "elsewhere/x.mp4"},
        {**GOOD, "video": "clips"},
    )
    error = refused("qa", tmp_path)
    assert "3 of 4 videos" in error.message
    assert "clips/gone.mp4, elsewhere/x.mp4, clips" in error.message
    corpus = read("manifest", "qa", tmp_path, allow_missing=True)
    assert [item.media for item in corpus.splits["train"]] == ["clips/a.mp4"]
    assert set(corpus.missing) == {"clips/gone.mp4", "elsewhere/x.mp4", "clips"}


def test_no_manifest(tmp_path):
    error = refused("qa", tmp_path)
    assert "manifest.jsonl" in error.message
    assert '"captions"' in error.hint


def unpack(name: str, out: Path) -> Path:
    script = shared("data", "unpack.py")
    subprocess.run([sys.executable, str(script), name, str(out)], check=True, capture_output=True)
    return out


def test_fight_clips(tmp_path):
    corpus = read("manifest", "action", unpack("fight_clips", tmp_path))
    assert {split: len(items) for split, items in corpus.splits.items()} == {"train": 190, "validation": 50}
    assert corpus.answers == ("fight", "other")
    assert sum(item.label == "fight" for item in corpus.splits["train"]) == 95
    assert all(path.is_file() for path in corpus.media.values())
    assert len(corpus.media) == 240
    assert corpus.notes == ()


@pytest.mark.slow
def test_flickr8k(tmp_path):
    corpus = read("manifest", "retrieval", unpack("flickr8k", tmp_path))
    assert {split: len(items) for split, items in corpus.splits.items()} == {"train": 6_000, "validation": 1_000}
    assert all(len(item.captions) == 5 for items in corpus.splits.values() for item in items)
