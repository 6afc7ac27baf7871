"""Training examples: a video with a caption or a question, and wrong videos and texts beside it."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from allinone_clips import ALL, S, epoch, owner, owners, write_manifest
from meltr.video.annotations import read
from meltr.video.text.vocabulary import VOCABULARY
from meltr.video.text.wordpiece import Tokenizer, write_vocabulary
from meltr_allinone.data import build_data
from meltr_fixtures import SIZES


@pytest.mark.parametrize("dataset", ["msrvtt-7k", "msrvtt-9k", "manifest"])
def test_an_example_of_retrieval_is_a_video_with_one_of_its_captions(dataset, make_context, sample, tmp_path):
    data = build_data(make_context("retrieval", dataset, settings=ALL, run_dir=tmp_path))
    corpus = read(dataset, "retrieval", sample(dataset))
    items = corpus.splits["train"]
    assert data.train.size == len(items) == SIZES["train"]
    tokenizer, known = Tokenizer(tmp_path / VOCABULARY, length=24), owner(corpus)
    own = {item.media: {tuple(row) for row in tokenizer.encode(item.captions).tolist()} for item in items}
    seen: dict[str, set[tuple[int, ...]]] = {item.media: set() for item in items}
    for number in range(12):
        rows = epoch(data, number)
        assert rows.keys() == {"video", "ids"}
        assert rows["video"].dtype == torch.uint8
        assert rows["video"].shape[1:] == (2, 3, S, S)
        media = owners(rows["video"], known)
        assert sorted(media) == sorted(own)
        for name, ids in zip(media, rows["ids"].tolist(), strict=True):
            seen[name].add(tuple(ids))
    assert all(seen[name] <= own[name] for name in own)
    assert sum(map(len, seen.values())) > 0.8 * sum(map(len, own.values()))


@pytest.mark.parametrize("dataset", ["msvd", "msrvtt", "manifest"])
def test_an_example_of_qa_is_a_question(dataset, make_context, sample, tmp_path):
    data = build_data(make_context("qa", dataset, losses=("answer",), settings=ALL, run_dir=tmp_path))
    corpus = read(dataset, "qa", sample(dataset))
    tokenizer = Tokenizer(tmp_path / VOCABULARY, length=24)
    assert data.meta["answers"] == list(corpus.answers)
    rows = epoch(data)
    found = zip(owners(rows["video"], owner(corpus)), rows["ids"].tolist(), rows["answer"].tolist(), strict=True)
    expected = [
        (item.media, tokenizer.encode([item.question])[0].tolist(), corpus.answers.index(item.answer))
        for item in corpus.splits["train"]
    ]
    assert sorted(found) == sorted(expected)


def test_tokens_that_go_on_with_a_word_are_told(make_context, tmp_path):
    file = tmp_path / "words.txt"
    write_vocabulary(file, ["a red ball"])
    data = build_data(make_context(vocabulary=file, whole_words=True))
    rows = epoch(data)
    names = file.read_text().splitlines()
    texts = [[names[number] for number in row] for row in rows["ids"].tolist()]
    assert rows["continues"].tolist() == [[name.startswith("##") for name in row] for row in texts]
    assert rows["continues"].any()


def test_an_answer_outside_the_vocabulary_has_no_class(vocabulary, make_context, clips, tmp_path):
    asked = [("train", "no"), ("train", "yes"), ("test", "perhaps"), ("test", "no")]
    rows = [{"split": split, "question": "is it there?", "answer": answer} for split, answer in asked]
    root = write_manifest(tmp_path / "data", clips[:4], rows)
    data = build_data(make_context("qa", "manifest", data_root=root, vocabulary=vocabulary, workers=0, settings=ALL))
    assert [int(example["answer"]) for example in data.test.clips()] == [-100, 0]


def test_wrong_videos_and_texts_are_of_other_videos(make_context, sample, tmp_path):
    options = {"false_videos": "dataset", "false_texts": 4, "losses": ("vtm", "rank"), "settings": ALL}
    data = build_data(make_context(run_dir=tmp_path, **options))
    corpus = read("msrvtt-7k", "retrieval", sample("msrvtt-7k"))
    tokenizer, known = Tokenizer(tmp_path / VOCABULARY, length=24), owner(corpus)
    train = corpus.splits["train"]
    of_text: dict[tuple[int, ...], set[str]] = {}
    for item in train:
        for row in tokenizer.encode(item.captions).tolist():
            of_text.setdefault(tuple(row), set()).add(item.media)
    pairs: Counter[tuple[str, str]] = Counter()
    for number in range(20):
        rows = epoch(data, number)
        assert rows["false_ids"].shape[1:] == (4, 24)
        own, wrong = owners(rows["video"], known), owners(rows["false_video"], known)
        pairs.update(zip(own, wrong, strict=True))
        for name, texts in zip(own, rows["false_ids"].tolist(), strict=True):
            assert all(of_text[tuple(text)] != {name} for text in texts)
    assert all(one != other for one, other in pairs)
    assert len(pairs) > 0.8 * 10 * 9


def test_a_wrong_item_may_be_the_right_one_as_released(make_context, sample):
    options = {"false_videos": "dataset", "false_items": "any", "settings": ALL}
    data = build_data(make_context(**options))
    known = owner(read("msrvtt-7k", "retrieval", sample("msrvtt-7k")))
    hits = 0
    for number in range(20):
        rows = epoch(data, number)
        hits += sum(
            one == other
            for one, other in zip(owners(rows["video"], known), owners(rows["false_video"], known), strict=True)
        )
    assert 5 <= hits <= 40  # 200 draws with probability 1/10


def test_only_losses_that_are_on_get_wrong_items(make_context):
    data = build_data(make_context(losses=("vtc", "mlm"), false_videos="dataset", false_texts=3))
    assert epoch(data).keys() == {"video", "ids"}


def test_a_single_video_is_its_own_wrong_one(make_context, clips, vocabulary, tmp_path):
    root = write_manifest(tmp_path / "data", clips[:1], [{"split": "train", "captions": ["a red ball"]}])
    data = build_data(
        make_context(
            "retrieval", "manifest", data_root=root, vocabulary=vocabulary, false_videos="dataset", settings=ALL
        )
    )
    rows = epoch(data)
    assert torch.equal(rows["video"], rows["false_video"])
