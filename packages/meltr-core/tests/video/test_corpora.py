"""The splits of a run: no video in two of them, nothing lost, limits and classes kept; where its data set is read."""

from __future__ import annotations

import io
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meltr.errors import UserError
from meltr.specs import BilevelSpec, RunSpec
from meltr.video import miniature
from meltr.video.corpora import cut, open_corpus
from meltr.video.corpus import Corpus, Item


def run_spec(*, outer_batch: str = "shared", data: dict | None = None, **fields) -> RunSpec:
    fields = {"task": "qa", "dataset": "msvd", "data": data or {}, **fields}
    return RunSpec(backbone="b", losses=("main",), bilevel=BilevelSpec(outer_batch=outer_batch), **fields)


def corpus(**splits: list[Item]) -> Corpus:
    items = {name: tuple(each) for name, each in splits.items()}
    media = {item.media: Path(item.media) for each in items.values() for item in each}
    return Corpus(dataset="msvd", task="qa", splits=items, media=media)


def questions(sizes: list[int], name: str = "v") -> list[Item]:
    """Return sizes[v] questions on video v, dealt out in turn, so that those of a video do not lie together."""
    dealt = sorted((turn, video) for video, size in enumerate(sizes) for turn in range(size))
    return [Item(f"{name}{video}", str(number), question="?", answer="!") for number, (_, video) in enumerate(dealt)]


def labelled(classes: int, count: int) -> list[Item]:
    return [Item(f"v{number}", str(number), label=f"c{number % classes}") for number in range(count)]


def videos(items) -> set[str]:
    return {item.media for item in items}


@given(
    st.lists(st.integers(1, 5), min_size=8, max_size=40),
    st.sampled_from([0.1, 0.3, 2]),
    st.sampled_from([0.02, 0.2, 3]),
    st.integers(0, 5),
)
def test_no_video_is_in_two_splits_and_no_example_is_lost(sizes, validation, held_out, seed):
    train = questions(sizes)
    data = {"validation": validation, "held_out": held_out, "split_seed": seed}
    splits = cut(corpus(train=train), run_spec(outer_batch="held_out", data=data)).splits
    assert set(splits) == {"train", "validation", "held_out"}
    for one, other in combinations(splits.values(), 2):
        assert not videos(one) & videos(other)
    assert Counter(item for items in splits.values() for item in items) == Counter(train)
    for items in splits.values():  # each in the order of the file
        assert [int(item.id) for item in items] == sorted(int(item.id) for item in items)
    for name, amount in (("validation", validation), ("held_out", held_out)):
        expected = amount if amount >= 1 else max(1, round(amount * len(sizes)))
        assert len(videos(splits[name])) == expected


def test_validation_is_cut_only_where_there_is_none():
    train, own, test = questions([2] * 10), questions([1] * 3, "w"), questions([1] * 4, "x")
    splits = cut(corpus(train=train, validation=own, test=test), run_spec()).splits
    assert splits == {"train": tuple(train), "validation": tuple(own), "test": tuple(test)}
    splits = cut(corpus(train=train, test=test), run_spec(data={"validation": 3})).splits
    assert len(videos(splits["validation"])) == 3
    assert splits["test"] == tuple(test)
    splits = cut(corpus(train=train), run_spec(data={"validation": 0})).splits
    assert splits == {"train": tuple(train)}


def test_held_out_examples_are_set_aside_only_for_who_asks():
    train, own = questions([2] * 10), questions([1] * 3, "w")
    asked = cut(corpus(train=train, validation=own), run_spec(outer_batch="held_out", data={"held_out": 4})).splits
    assert len(videos(asked["held_out"])) == 4
    assert asked["validation"] == tuple(own)
    assert "held_out" not in cut(corpus(train=train), run_spec(data={"held_out": 4})).splits


def test_cuts_and_limits_hold_every_class_alike():
    source = corpus(train=labelled(4, 80), test=labelled(4, 40))
    data = {"validation": 8, "held_out": 12, "train_limit": 20, "eval_limit": 4}
    splits = cut(source, run_spec(task="action", outer_batch="held_out", data=data)).splits
    counts = {name: Counter(item.label for item in items) for name, items in splits.items()}
    each = {"train": 5, "validation": 1, "test": 1, "held_out": 3}
    assert counts == {name: {f"c{number}": count for number in range(4)} for name, count in each.items()}


def test_fewer_training_examples_are_validated_on_the_same_ones():
    source = corpus(train=questions([1, 2, 3] * 6))
    few = cut(source, run_spec(data={"train_limit": 5})).splits
    all_of_them = cut(source, run_spec(seed=3)).splits
    assert len(few["train"]) == 5
    assert set(few["train"]) < set(all_of_them["train"])
    assert few["validation"] == all_of_them["validation"]
    assert cut(source, run_spec(data={"split_seed": 1})).splits["validation"] != few["validation"]


def test_what_is_no_split_is_kept():
    source = corpus(train=questions([1] * 10))
    found = cut(source, run_spec())
    assert (found.dataset, found.task, found.media) == (source.dataset, source.task, source.media)


def test_a_part_that_takes_all_videos_is_refused():
    with pytest.raises(UserError, match=r"No training example would be left.*10 of 10"):
        cut(corpus(train=questions([3] * 10)), run_spec(data={"validation": 10}))


# Where the data set is read


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def small(tmp_path, monkeypatch) -> None:
    pytest.importorskip("av")
    monkeypatch.setenv("MELTR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(miniature, "SIZES", {"train": 3, "validation": 2, "test": 2})


def watched(monkeypatch) -> Terminal:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    return terminal


@pytest.mark.usefixtures("small")
def test_a_miniature_is_written_once_with_progress_on_a_terminal(monkeypatch, tmp_path):
    stderr = watched(monkeypatch)
    first = open_corpus(run_spec(sample=True))
    assert "clips of the synthetic sample of msvd 7/7 (100%)" in stderr.getvalue()
    assert {name: len(videos(items)) for name, items in first.splits.items()} == miniature.SIZES
    assert all(path.is_relative_to(tmp_path / "cache") for path in first.media.values())
    shown = stderr.getvalue()
    assert open_corpus(run_spec(sample=True)) == first
    assert stderr.getvalue() == shown


@pytest.mark.usefixtures("small")
def test_other_processes_write_it_in_silence(monkeypatch):
    stderr = watched(monkeypatch)
    assert open_corpus(run_spec(sample=True), quiet=True).splits["train"]
    assert stderr.getvalue() == ""


@pytest.mark.usefixtures("small")
def test_without_sample_the_data_root_is_read(tmp_path):
    root = miniature.write("msvd", tmp_path / "data", seed=1, sizes={"train": 4})
    found = open_corpus(run_spec(data_root=root))
    assert len(videos(found.splits["train"])) == 4
    assert all(path.is_relative_to(root) for path in found.media.values())
    assert not (tmp_path / "cache").exists()
    gone = found.media[found.splits["test"][0].media]
    gone.unlink()
    with pytest.raises(UserError, match="1 of 8 videos that the annotations name are not in"):
        open_corpus(run_spec(data_root=root))
    assert len(open_corpus(run_spec(data_root=root, data={"allow_missing": True})).missing) == 1
    with pytest.raises(UserError, match="--data-root was not given"):
        open_corpus(run_spec())
