"""Readers on real annotation samples that lie beside the project, put into the published forms where they differ."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from pathlib import Path

import pytest

from annotation_files import touch, write_csv
from meltr.video.annotations import layout, read
from places import shared


@pytest.fixture(scope="module")
def samples() -> Path:
    return shared("data", "msvd_text").parent


def unzipped(path: Path) -> str:
    return gzip.decompress(path.read_bytes()).decode()


def rows(path: Path, delimiter: str = ",") -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(unzipped(path), newline=""), delimiter=delimiter))


@pytest.fixture(scope="module")
def msvd(samples, tmp_path_factory) -> Path:
    """All training and validation questions; one question of the prepared sample as the test."""
    root = tmp_path_factory.mktemp("msvd")
    mapping = unzipped(samples / "msvd_text" / "youtube_id_to_vid.txt.gz")
    (root / "youtube_mapping.txt").write_text(mapping)
    for name, split in (("train", "train"), ("val", "val")):
        questions = [
            {
                "id": int(row["qid"]),
                "video_id": int(row["video"]),
                "question": f"{row['question']}?",
                "answer": row["answer"],
            }
            for row in rows(samples / "msvd_text" / f"qa_{split}.csv.gz")
        ]
        (root / f"{name}_qa.json").write_text(json.dumps(questions))
    (root / "test_qa.json").write_text('[{"id": 0, "video_id": 1970, "question": "who is it?", "answer": "man"}]')
    touch(root / "YouTubeClips", (f"{line.split()[0]}.avi" for line in mapping.splitlines()))
    return root


def test_msvd_has_the_published_counts_and_vocabulary(samples, msvd):
    prepared = json.loads((samples / "violet_samples" / "data" / "txt_msvd-qa.json").read_text())
    corpus = read("msvd", "qa", msvd)
    for split in ("train", "validation"):
        assert len(corpus.splits[split]) == layout("msvd").published[split]
    assert corpus.answers == tuple(prepared["vocab"])
    assert len({item.id for item in corpus.splits["train"]}) == 30_933


def test_msvd_agrees_with_the_prepared_sample(samples, msvd):
    prepared = json.loads((samples / "violet_samples" / "data" / "txt_msvd-qa.json").read_text())
    corpus = read("msvd", "qa", msvd)
    for ours, theirs in (("train", "train"), ("validation", "val")):
        known = {(item.media, item.question, item.answer) for item in corpus.splits[ours]}
        for row in prepared[theirs]:
            assert (row["video"], row["question"], prepared["vocab"][row["answer"]]) in known


def test_tgif_frames_have_1540_answers(samples, tmp_path):
    questions = rows(samples / "tgifqa_text" / "frameqa_train.csv.gz")
    header = "gif_name\tquestion\tanswer\ttype\tvid_id\tkey\tdescription"
    lines = [
        f"g{row['video']}\t{row['question']}\t{row['answer']}\t0\t{row['qid']}\t{row['video']}\t-" for row in questions
    ]
    (tmp_path / "Train_frameqa_question.csv").write_text("\n".join([header, *lines]))
    (tmp_path / "Test_frameqa_question.csv").write_text("\n".join([header, *lines[:9]]))
    touch(tmp_path / "gifs", {f"g{row['video']}.gif" for row in questions})
    corpus = read("tgif-frame", "qa", tmp_path)
    assert len(corpus.splits["train"]) == layout("tgif-frame").published["train"]
    assert len(corpus.answers) == 1_540
    assert corpus.notes == ()


def test_tgif_actions(samples, tmp_path):
    """The sample has 20,473 of the 20,475 questions that the published table counts."""
    questions = rows(samples / "tgifqa_text" / "action_train.csv.gz")
    header = "gif_name\tquestion\ta1\ta2\ta3\ta4\ta5\tanswer\tvid_id\tkey"
    lines = [
        "\t".join([f"g{r['video']}", r["question"], *(r[f"a{i}"] for i in range(5)), r["answer"], r["qid"], r["video"]])
        for r in questions
    ]
    (tmp_path / "Train_action_question.csv").write_text("\n".join([header, *lines]))
    (tmp_path / "Test_action_question.csv").write_text("\n".join([header, *lines[:9]]))
    touch(tmp_path / "gifs", {f"g{row['video']}.gif" for row in questions})
    items = read("tgif-action", "qa", tmp_path).splits["train"]
    assert len(items) == 20_473
    for item, row in zip(items, questions, strict=True):
        assert item.answer == row[f"a{row['answer']}"] == item.choices[item.correct]


@pytest.mark.parametrize("size", ["7k", "9k"])
def test_msrvtt_lists(samples, tmp_path, size):
    lines = [line.split("\t") for line in unzipped(samples / "msrvtt_text" / "one_caption_train9k.tsv.gz").splitlines()]
    names = [name for name, _ in lines]
    if size == "7k":
        names = unzipped(samples / "msrvtt_text" / "train7k_ids.txt.gz").split()
    everything = [f"video{number}" for number in range(10_000)]
    test = sorted(set(everything) - {name for name, _ in lines})
    captions = dict(lines)
    sentences = [{"video_id": name, "caption": captions.get(name, "a test clip")} for name in everything]
    (tmp_path / "MSRVTT_data.json").write_text(json.dumps({"sentences": sentences}))
    write_csv(tmp_path / f"MSRVTT_train.{size}.csv", [["video_id"], *([name] for name in names)])
    write_csv(
        tmp_path / "MSRVTT_JSFUSION_test.csv",
        [
            ["key", "vid_key", "video_id", "sentence"],
            *([f"ret{i}", "", name, "a test clip"] for i, name in enumerate(test)),
        ],
    )
    touch(tmp_path / "videos", (f"{name}.mp4" for name in everything))
    corpus = read(f"msrvtt-{size}", "retrieval", tmp_path)
    assert {split: len(items) for split, items in corpus.splits.items()} == dict(layout(f"msrvtt-{size}").published)
    some = random.Random(0).sample(corpus.splits["train"], 20)
    assert all(item.captions == (captions.get(item.media, "a test clip"),) for item in some)
