"""The splits and the vocabulary of a run, what does not fit, and real clips."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch

from allinone_clips import ALL, DRAWING, epoch, write_manifest
from meltr.errors import UserError
from meltr.video.text.vocabulary import VOCABULARY
from meltr_allinone.adapter import AllInOneAdapter
from places import published_vocabulary, shared

build_data = AllInOneAdapter().build_data


def test_splits_share_no_video(make_context):
    settings = {"bilevel": {"outer_batch": "held_out"}, "data": {"held_out": 2, "validation": 3}}
    data = build_data(make_context(settings=settings))
    splits = data.validation.corpus.splits
    assert {name: len(items) for name, items in splits.items()} == data.meta["splits"]
    assert data.held_out is not None
    assert (data.train.size, data.held_out.size, len(data.validation.items)) == (5, 2, 3)
    media = [{item.media for item in items} for items in splits.values()]
    assert sum(map(len, media)) == len(set().union(*media)) == data.meta["videos"]


def test_limits_do_not_change_the_vocabulary(make_context, tmp_path):
    few = build_data(make_context(run_dir=tmp_path / "few", settings={"data": {"train_limit": 4, "eval_limit": 2}}))
    build_data(make_context(run_dir=tmp_path / "all"))
    assert (few.train.size, len(few.test.items)) == (4, 2)
    assert (tmp_path / "few" / VOCABULARY).read_text() == (tmp_path / "all" / VOCABULARY).read_text()


def test_processes_share_a_batch(make_context):
    context = make_context(**DRAWING)
    whole = epoch(build_data(context))
    parts = [
        [batch["video"] for batch in build_data(dataclasses.replace(context, rank=rank, world_size=2)).train.batches(0)]
        for rank in range(2)
    ]
    joined = torch.cat([torch.cat(pair) for pair in zip(*parts, strict=True)])
    assert torch.equal(joined, whole["video"])


def test_a_small_model_from_scratch_takes_the_words_of_the_data_set(make_context, clips, tmp_path):
    rows = [{"split": "train", "captions": ["a zorilla runs"]}, {"split": "train", "captions": ["it sleeps"]}]
    root = write_manifest(tmp_path / "data", clips[:2], rows)
    build_data(make_context("retrieval", "manifest", data_root=root, size="tiny", run_dir=tmp_path / "run"))
    assert {"zorilla", "runs", "sleeps"} <= set((tmp_path / "run" / VOCABULARY).read_text().splitlines())


def test_questions_with_choices_are_refused(vocabulary, make_context, clips, tmp_path):
    row = {"split": "train", "question": "is it there?", "answer": "yes", "choices": ["yes", "no"]}
    root = write_manifest(tmp_path / "data", clips[:2], [row, row])
    with pytest.raises(UserError, match="have choices") as caught:
        build_data(make_context("qa", "manifest", data_root=root, vocabulary=vocabulary))
    assert "Remove `choices`" in str(caught.value.hint)


def test_long_texts_are_cut_with_a_note(make_context):
    context = make_context(text_length=6)
    rows = epoch(build_data(context))
    assert any("have more than 4 words and are truncated" in note and "text_length" in note for note in context.notes)
    assert rows["ids"].shape[1] == 6
    assert set(rows["ids"][:, 0].tolist()) == {101}
    context = make_context(text_length=40)
    build_data(context)
    assert not any("are truncated" in note for note in context.notes)


def test_the_real_clips(make_context, tmp_path):
    """Ten clips of MSR-VTT with their captions, as a manifest: train, validation and test."""
    folder, file = shared("data", "captioned_clips", "index.jsonl").parent, published_vocabulary()
    rows = [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]
    splits = ["train"] * 6 + ["validation"] * 2 + ["test"] * 2
    (tmp_path / "data").mkdir()
    lines = []
    for row, split in zip(rows, splits, strict=True):
        name = next(str(value) for value in row.values() if str(value).endswith(".mp4"))
        caption = row.get("caption") or row["captions"][0]
        os.symlink(folder / Path(name).name, tmp_path / "data" / Path(name).name)
        lines.append({"video": Path(name).name, "split": split, "captions": [caption]})
    (tmp_path / "data" / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = {"data_root": tmp_path / "data", "vocabulary": file, "workers": 0, "sampling": "random", "image_size": 64}
    data = build_data(make_context("retrieval", "manifest", **given, augmentation="crop", settings=ALL))
    assert data.meta["splits"] == {"train": 6, "validation": 2, "test": 2}
    rows = epoch(data)
    assert rows["video"].shape == (6, 2, 3, 64, 64)
    assert not (rows["ids"] == 100).any()
    assert [len(data.test.examples()), len(data.validation.examples())] == [2, 2]
