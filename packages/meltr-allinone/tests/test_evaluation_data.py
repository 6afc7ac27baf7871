"""What an evaluation sees: frames, captions, questions, random views."""

from __future__ import annotations

import random

import pytest
import torch

from allinone_clips import owner, owners
from meltr.video.annotations import read
from meltr.video.text.vocabulary import VOCABULARY
from meltr.video.text.wordpiece import Tokenizer
from meltr_allinone.data import build_data
from meltr_fixtures import SIZES


def test_evaluation_sees_the_middle_of_every_segment(make_context, sample):
    data = build_data(make_context(sampling="random", augmentation="crop"))
    corpus = read("msrvtt-7k", "retrieval", sample("msrvtt-7k"))
    clips = [example["video"] for example in data.test.clips()]
    assert owners(torch.stack(clips), owner(corpus)) == [item.media for item in corpus.splits["test"]]


def test_captions_of_an_evaluation_know_their_video(make_context, sample, tmp_path):
    data = build_data(make_context(run_dir=tmp_path))
    corpus = read("msrvtt-7k", "retrieval", sample("msrvtt-7k"))
    captions = {item.media: item.captions for items in corpus.splits.values() for item in items}
    tokenizer = Tokenizer(tmp_path / VOCABULARY, length=24)
    for split in (data.validation, data.test):
        whose, ids = split.captions()
        expected = [
            (number, row) for number, item in enumerate(split.items) for row in tokenizer.encode(captions[item.media])
        ]
        if split is data.test:
            assert [len(item.captions) for item in split.items] == [1] * SIZES["test"]
            expected = [(n, tokenizer.encode(item.captions)[0]) for n, item in enumerate(split.items)]
        assert whose == [number for number, _ in expected]
        assert torch.equal(ids, torch.stack([row for _, row in expected]))
    assert data.test.baseline.metrics["r@1"] == pytest.approx(100 / SIZES["test"])


def test_random_views_differ_and_repeat(make_context):
    """A view is the same in any order, in any process and after any draws, and leaves the generators as they were."""
    data = build_data(make_context(eval_sampling="released", retrieval_views=3))
    views = [torch.stack([example["video"] for example in data.test.clips(view)]) for view in range(3)]
    assert not torch.equal(views[0], views[1])
    assert not torch.equal(views[1], views[2])
    random.seed(5)
    expected = random.random()
    random.seed(5)
    clips = data.test.clips(1)
    assert all(torch.equal(clips[number]["video"], views[1][number]) for number in reversed(range(len(clips))))
    assert random.random() == expected
    loaded = torch.utils.data.DataLoader(clips, batch_size=3, num_workers=1)
    assert torch.equal(torch.cat([batch["video"] for batch in loaded]), views[1])


def test_questions_of_an_evaluation(make_context, sample, tmp_path):
    data = build_data(make_context("qa", "msrvtt", losses=("answer",), run_dir=tmp_path))
    corpus = read("msrvtt", "qa", sample("msrvtt"))
    tokenizer = Tokenizer(tmp_path / VOCABULARY, length=24)
    for split in (data.validation, data.test):
        assert split.items == corpus.splits[split.name]
        for item, example in zip(split.items, split.clips(), strict=True):
            assert torch.equal(example["ids"], tokenizer.encode([item.question])[0])
            assert corpus.answers[int(example["answer"])] == item.answer
