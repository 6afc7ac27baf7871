"""Readers of captioning and sentiment: YouCook2, MSR-VTT whole, CMU-MOSI, and a manifest of one's own."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from meltr.errors import UserError
from meltr.specs import RunSpec
from meltr.video import annotations, miniature
from meltr.video.annotations.parsing import number_of
from meltr.video.corpora import open_corpus
from meltr.video.miniature.cmu_mosi import FEELING, OPINIONS
from places import shared


def files(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def write(root: Path, name: str, content: Any) -> Path:
    text = content if isinstance(content, str) else json.dumps(content)
    (root / name).write_text(text, encoding="utf-8")
    return root


# YouCook2


def youcook(*steps: Any, subset: str = "training", **more: Any) -> dict[str, Any]:
    return {"database": {"vid": {"subset": subset, "annotations": list(steps)}, **more}}


def step(start: Any, end: Any, sentence: Any = "cut  the onion\n") -> dict[str, Any]:
    return {"segment": [start, end], "sentence": sentence, "id": 0}


def test_youcook2_has_an_item_a_step_with_its_words(tmp_path: Path) -> None:
    other = {"subset": "validation", "annotations": [step(0, 2.5, "boil")]}
    unknown = {"subset": "testing", "annotations": []}
    content = youcook(step(1, 4), step(4, 9, "fry it"), other=other, hidden=unknown)
    write(tmp_path, "youcookii_annotations_trainval.json", content)
    said = {"vid": [{"start": 0, "end": 1.5, "text": "hello"}, {"start": 3, "end": 5, "text": "now we cut"}]}
    write(files(tmp_path, "videos/vid.mp4", "videos/deep/other.webm"), "transcripts.json", said)
    corpus = annotations.read("youcook2", "captioning", tmp_path)
    first, second = corpus.splits["train"]
    assert (first.media, first.id, first.captions, first.span) == ("vid", "vid_0", ("cut the onion",), (1.0, 4.0))
    assert first.transcript == "hello now we cut"
    assert second.transcript == "now we cut"
    (test,) = corpus.splits["test"]
    assert (test.media, test.transcript) == ("other", None)
    assert "validation split" in corpus.notes[0]
    assert [item.span for item in annotations.read("youcook2", "retrieval", tmp_path).splits["train"]] == [
        (1, 4),
        (4, 9),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "no object 'database'"),
        (youcook({"sentence": "x"}), "'segment' is None"),
        (youcook(step(3, 3)), "does not end after its start"),
        (youcook(step(-1, 3)), r"'segment' is \[-1, 3\]"),
        (youcook(step(0, "x")), "'segment' is"),
        (youcook(step(0, 1, 7.5)), "'sentence' is 7.5"),
        (youcook(step(0, 1), subset=3.5), "'subset' is 3.5"),
    ],
)
def test_malformed_steps_are_named(tmp_path: Path, content: Any, message: str) -> None:
    write(tmp_path, "yc2_annotations_trainval.json", content)
    with pytest.raises(UserError, match=message) as found:
        annotations.read("youcook2", "captioning", tmp_path)
    assert "yc2_annotations_trainval.json" in found.value.message


def test_real_youcook2_sentences(tmp_path: Path) -> None:
    folder = shared("data", "youcook2_text")
    database: dict[str, Any] = {}
    for name, subset in (("train", "training"), ("val_a", "validation")):
        text = gzip.decompress((folder / f"{name}.jsonl.gz").read_bytes()).decode()
        for row in map(json.loads, text.splitlines()):
            pairs = zip(row["segments"], row["sentences"], strict=True)
            steps = [{"segment": span, "sentence": sentence} for span, sentence in pairs]
            database[row["video"]] = {"subset": subset, "annotations": steps}
    write(tmp_path, "youcookii_annotations_trainval.json", {"database": database})
    layout, task = annotations.layout_for("youcook2", "captioning")
    draft = annotations.reader("youcook2").draft(layout, task, layout.find(tmp_path))
    assert {split: len(items) for split, items in draft.splits.items()} == {"train": 10_337, "test": 1_787}
    assert len({item.media for item in draft.splits["train"]}) == 1_333
    assert layout.published["train"] == 10_337


# MSR-VTT


def msrvtt(*videos: dict[str, Any], captions: int = 2) -> dict[str, Any]:
    sentences = [
        {"video_id": video["video_id"], "caption": f"caption {n}"} for video in videos for n in range(captions)
    ]
    return {"videos": list(videos), "sentences": sentences}


def clip(number: int, **more: Any) -> dict[str, Any]:
    return {"video_id": f"video{number}", **more}


def test_msrvtt_full_takes_the_split_that_the_file_names(tmp_path: Path) -> None:
    videos = [clip(0, split="test"), clip(1, split="train", transcript="hi"), clip(2, split="validate", transcript="")]
    write(files(tmp_path, *(f"videos/video{n}.mp4" for n in range(3))), "MSRVTT_data.json", msrvtt(*videos))
    corpus = annotations.read("msrvtt-full", "captioning", tmp_path)
    assert {split: [item.media for item in items] for split, items in corpus.splits.items()} == {
        "train": ["video1"],
        "validation": ["video2"],
        "test": ["video0"],
    }
    (train,) = corpus.splits["train"]
    assert train.captions == ("caption 0", "caption 1")
    assert train.transcript == "hi"
    assert corpus.splits["validation"][0].transcript is None


def test_msrvtt_full_in_two_files(tmp_path: Path) -> None:
    files(tmp_path, "TrainValVideo/video0.mp4", "TestVideo/video1.mp4")
    write(tmp_path, "train_val_videodatainfo.json", msrvtt(clip(0, split="train")))
    write(tmp_path, "test_videodatainfo.json", msrvtt(clip(1, split="test")))
    corpus = annotations.read("msrvtt-full", "captioning", tmp_path)
    assert [item.media for items in corpus.splits.values() for item in items] == ["video0", "video1"]


def test_without_splits_the_order_of_the_whole_counts(tmp_path: Path) -> None:
    write(tmp_path, "MSRVTT_data.json", msrvtt(*(clip(n) for n in range(10_000)), captions=1))
    layout, task = annotations.layout_for("msrvtt-full", None)
    splits = annotations.reader("msrvtt-full").draft(layout, task, layout.find(tmp_path)).splits
    assert [(split, len(items), items[0].media) for split, items in splits.items()] == [
        ("train", 6_513, "video0"),
        ("validation", 497, "video6513"),
        ("test", 2_990, "video7010"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"videos": []}, "no list 'sentences'"),
        (msrvtt(clip(0), clip(1)), "2 videos without a split"),
        (msrvtt(clip(0, split="tran")), "unknown split 'tran'"),
        ({"videos": [clip(0, split="train")], "sentences": []}, "no caption for 1 of 1 clips: video0"),
    ],
)
def test_malformed_captions_are_named(tmp_path: Path, content: Any, message: str) -> None:
    write(tmp_path, "MSRVTT_data.json", content)
    with pytest.raises(UserError, match=message):
        annotations.read("msrvtt-full", "captioning", tmp_path)


# CMU-MOSI


HEADER = "row\tvideo\tsegment\tstart\tend\tintensity\tfold_standard\twords"
LINES = (
    "0\tabc\t1\t0\t2\t2.4\ttrain\tIT WAS  GOOD",
    "1\tabc\t2\t2\t3\t-0.8\tvalid\tNO",
    "2\txyz\t1\t0\t9\t0\ttest\t",
)


def mosi(tmp_path: Path, *lines: str, name: str = "index.tsv") -> Path:
    text = "\n".join([HEADER, *lines]) + "\n"
    if name.endswith(".gz"):
        (tmp_path / name).write_bytes(gzip.compress(text.encode()))
    else:
        (tmp_path / name).write_text(text, encoding="utf-8")
    return files(tmp_path, "Segmented/abc_1.mp4", "Segmented/abc_2.mp4", "Segmented/xyz_1.mp4")


@pytest.mark.parametrize("name", ["index.tsv", "index.tsv.gz"])
def test_cmu_mosi_as_a_table(tmp_path: Path, name: str) -> None:
    corpus = annotations.read("cmu-mosi", "sentiment", mosi(tmp_path, *LINES, name=name))
    found = {split: [(i.id, i.score, i.transcript) for i in items] for split, items in corpus.splits.items()}
    assert found == {
        "train": [("abc_1", 2.4, "IT WAS GOOD")],
        "validation": [("abc_2", -0.8, "NO")],
        "test": [("xyz_1", 0.0, None)],
    }
    assert corpus.media["abc_2"].name == "abc_2.mp4"


@pytest.mark.parametrize("raw", [True, False])
def test_cmu_mosi_as_mmsa_labels(tmp_path: Path, raw: bool) -> None:
    rows = ["video_id,clip_id,text,label,annotation,mode", 'abc,1,"good, really",3.0,Positive,train']
    write(tmp_path, "label.csv", "\n".join(rows) + "\n")
    files(tmp_path, "Raw/abc/1.mp4" if raw else "Segmented/abc_1.mp4")
    corpus = annotations.read("cmu-mosi", "sentiment", tmp_path)
    (item,) = corpus.splits["train"]
    assert (item.transcript, item.score) == ("good, really", 3.0)
    assert corpus.media["abc_1"].name == ("1.mp4" if raw else "abc_1.mp4")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2\tabc\t1\t0\t2\t1\ttrain\tX", "line 3: the utterance abc_1 already occurs in line 2"),
        ("2\tabc\t3\t0\t2\t3.5\ttrain\tX", "'intensity' is 3.5, not from -3 to 3"),
        ("2\tabc\t3\t0\t2\tnan\ttrain\tX", "'intensity' is 'nan', not a number"),
        ("2\tabc\t3\t0\t2\t?\ttrain\tX", r"'intensity' is '\?', not a number"),
        ("2\tabc\t3\t0\t2\t1\ttrian\tX", "unknown fold 'trian'"),
        ("2\tabc", "2 fields instead of 8"),
    ],
)
def test_malformed_utterances_are_named(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        annotations.read("cmu-mosi", "sentiment", mosi(tmp_path, LINES[0], line))


def test_a_broken_gzip_is_named(tmp_path: Path) -> None:
    (tmp_path / "index.tsv.gz").write_bytes(gzip.compress(b"video\n" * 100)[:-12])
    with pytest.raises(UserError, match=r"index\.tsv\.gz: not a complete gzip file"):
        annotations.read("cmu-mosi", "sentiment", tmp_path)


def test_real_cmu_mosi_folds() -> None:
    folder = shared("data", "mosi")
    layout, task = annotations.layout_for("cmu-mosi", None)
    splits = annotations.reader("cmu-mosi").draft(layout, task, layout.find(folder)).splits
    assert {split: len(items) for split, items in splits.items()} == layout.published
    speakers = [{item.media.rpartition("_")[0] for item in items} for items in splits.values()]
    assert not speakers[0] & speakers[1] | speakers[0] & speakers[2] | speakers[1] & speakers[2]


# A manifest


def manifest(tmp_path: Path, *lines: dict[str, Any]) -> Path:
    write(tmp_path, "manifest.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return files(tmp_path, "a.mp4", "b.npy")


def test_a_manifest_for_captions_joins_lines_of_one_part(tmp_path: Path) -> None:
    one = {"split": "train", "video": "a.mp4", "start": 0, "end": 2.5}
    root = manifest(
        tmp_path,
        {**one, "captions": "first", "transcript": "words"},
        {**one, "captions": ["second"]},
        {"split": "train", "video": "a.mp4", "captions": "whole"},
        {"split": "test", "features": "b.npy", "captions": "other"},
    )
    corpus = annotations.read("manifest", "captioning", root)
    part, whole = corpus.splits["train"]
    assert (part.captions, part.span, part.transcript) == (("first", "second"), (0.0, 2.5), "words")
    assert (whole.captions, whole.span) == (("whole",), None)
    assert corpus.splits["test"][0].media == "b.npy"


def test_a_manifest_for_sentiment(tmp_path: Path) -> None:
    root = manifest(tmp_path, {"split": "train", "video": "a.mp4", "score": -1, "transcript": "no"})
    (item,) = annotations.read("manifest", "sentiment", root).splits["train"]
    assert (item.score, item.transcript) == (-1.0, "no")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({}, "no 'score'"),
        ({"score": 4}, "'score' is 4, not from -3 to 3"),
        ({"score": True}, "'score' is True, not a number"),
        ({"score": 1, "start": 2}, "no 'end'"),
        ({"score": 1, "start": 2, "end": 2}, "from 2 to 2 seconds ends before it starts"),
        ({"score": 1, "image": "a.png"}, "both 'video' and 'image'"),
        ({"score": 1, "transcript": ""}, "'transcript' is ''"),
    ],
)
def test_malformed_lines_are_named(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    root = manifest(tmp_path, {"split": "train", "video": "a.mp4", **more})
    with pytest.raises(UserError, match=message):
        annotations.read("manifest", "sentiment", root)


def test_numbers_of_tables_and_json() -> None:
    assert number_of({"a": "1.5"}, "a", "here") == 1.5
    assert number_of({"a": 2}, "a", "here", low=2) == 2
    with pytest.raises(UserError, match="here: no 'b'; it has a"):
        number_of({"a": 1}, "b", "here")


# Miniatures


def test_half_of_the_sentiment_is_in_the_words_and_half_in_the_colour(tmp_path: Path) -> None:
    root = miniature.write("cmu-mosi", tmp_path / "mini", sizes={"train": 36, "validation": 6, "test": 6})
    items = annotations.read("cmu-mosi", "sentiment", root).splits["train"]
    spoken = [next(value for word, value in OPINIONS.items() if word.upper() in str(item.transcript)) for item in items]
    seen = [round((item.score or 0) - half, 6) for item, half in zip(items, spoken, strict=True)]
    for half, values in ((spoken, OPINIONS.values()), (seen, FEELING.values())):
        assert sorted(set(half)) == sorted(values)
        assert all(half.count(value) == 6 for value in values)
    assert abs(sum(a * b for a, b in zip(spoken, seen, strict=True))) < 0.6 * sum(a * a for a in spoken)


def test_what_is_said_of_a_step_does_not_tell_its_colour_or_movement(tmp_path: Path) -> None:
    root = miniature.write("youcook2", tmp_path / "mini", sizes={"train": 6, "test": 3})
    corpus = annotations.read("youcook2", "captioning", root)
    for items in corpus.splits.values():
        for first, second in zip(items[::2], items[1::2], strict=True):
            assert first.span is not None
            assert second.span is not None
            assert first.span[1] == second.span[0]
            shape = re.findall(r"the \w+ (\w+) ", first.captions[0])[0]
            assert shape in str(first.transcript)
            assert first.captions != second.captions
            assert not set(str(first.transcript).split()) & {"red", "green", "blue", "yellow", "purple", "white"}


def test_a_sample_of_a_folder_is_refused(tmp_path: Path) -> None:
    spec = RunSpec(backbone="b", task="sentiment", dataset="cmu-mosi", losses=("x",), sample=True, data_root=tmp_path)
    with pytest.raises(UserError, match="--sample uses a synthetic sample of cmu-mosi, but --data-root"):
        open_corpus(spec)
