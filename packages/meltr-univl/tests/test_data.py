"""The data of a run: from prepared files, from annotations beside features, from miniatures; what can go wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from meltr.context import Data, RunContext
from meltr.errors import UserError
from meltr.specs import RunSpec, TaskInfo
from meltr.video import Item, Labels, Split
from meltr.video.adapter.encoder import Examples
from meltr.video.annotations import read
from meltr.video.text.wordpiece import CLS, SEP
from meltr_fixtures import Sample
from meltr_univl.adapter import UnivlAdapter
from meltr_univl.data.encoder import UnivlEncoder
from meltr_univl.features.extraction import extract
from meltr_univl.features.grid import Grid
from meltr_univl.features.reading import FeatureRecord, write_record
from meltr_univl.options import UnivlOptions
from univl_files import SEGMENTS, write_youcook, youcook_data

build_data = UnivlAdapter().build_data
Make = Callable[..., RunContext]
COLUMNS = {"text", "text_mask", "video", "video_mask", "caption_input", "caption_mask", "caption_output"}


@pytest.fixture(autouse=True)
def _cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MELTR_CACHE", str(cache))


@pytest.fixture
def make() -> Make:
    """Return a maker of what core tells the adapter of a small run."""

    def context(task: str, dataset: str, root: Path | None = None, **given: Any) -> RunContext:
        run_dir, follows = given.pop("run_dir", None), given.pop("weights_follow", False)
        data, train = given.pop("data", {}), {"batch_size": given.pop("batch_size", 2)}
        settings = {"size": "tiny", "text_length": 10, "video_length": 6, **given}
        spec = RunSpec(
            backbone="univl",
            task=task,
            dataset=dataset,
            losses=("align",),
            data_root=root,
            sample=root is None,
            data={"validation": 1, "workers": 0, **data},
            train=train,
            options=settings,
        )
        info = TaskInfo(name=task, summary="", metrics=("m",))
        return RunContext(
            spec,
            info,
            UnivlOptions(**settings),
            torch.device("cpu"),
            ("align",),
            run_dir=run_dir,
            weights_follow=follows,
        )

    return context


def rows(examples: Examples) -> list[dict[str, Tensor]]:
    return [examples[number] for number in range(len(examples))]


def said(examples: Examples, column: str) -> list[str]:
    """Return the words of a column, without [CLS]."""
    return [
        examples.encoder.wording.words([number for number in row[column].tolist() if number != CLS])
        for row in rows(examples)
    ]


def trained_on(split: Split) -> Examples:
    """Return the items of a split as training has them, with captions."""
    return Examples(split.encoder, split.items)


def columns_of(data: Data) -> dict[str, Tensor]:
    """Return the first epoch of training in one."""
    batches = list(data.train.batches(0))
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def test_retrieval_from_prepared_files(make: Make, tmp_path: Path) -> None:
    context = make("retrieval", "youcook2", write_youcook(tmp_path), caption_length=4)
    data = build_data(context)
    splits = data.meta["splits"]  # one of two videos, of one or two segments, is set aside
    assert splits["test"] == 1
    assert splits["train"] + splits["validation"] == 3
    assert any("youcookii_data.pickle" in note for note in context.notes)
    examples = trained_on(data.test)
    assert set(examples[0]) == COLUMNS
    assert said(examples, "text") == ["fry the egg"]
    assert said(examples, "caption_output") == ["fry the egg"]
    row = examples[0]
    assert row["video"].shape == (6, 6)
    assert row["video_mask"].tolist() == [1, 0, 0, 0, 0, 0]  # from second 2.0 to 2.0: one vector
    assert row["video"][0].tolist() == [2.0] * 6
    assert not row["video"][1:].any()
    assert row["caption_input"].shape == row["caption_output"].shape == (4,)
    assert row["caption_output"].tolist()[-1] == SEP


@pytest.mark.parametrize("inputs", ["v", "v+t"])
def test_captions_from_video_with_and_without_transcript(make: Make, tmp_path: Path, inputs: str) -> None:
    root = write_youcook(tmp_path)
    data = build_data(make("captioning", "youcook2", root, inputs=inputs, no_text="none", data={"validation": 0}))
    wanted = {"v": ["none"] * 3, "v+t": ["none", "okay so now", "none"]}[inputs]
    train = Examples(data.test.encoder, data.train.dataset.items)
    assert said(train, "text") == wanted
    assert said(train, "caption_output") == ["mix", "spread margarine", "cut the bread"]
    assert [row["video_mask"].sum().item() for row in rows(train)] == [4, 5, 6]
    assert data.test.references == {"v3_0": ("fry the egg",)}


def test_without_a_transcript_there_is_no_text(make: Make, tmp_path: Path) -> None:
    data = build_data(make("captioning", "youcook2", write_youcook(tmp_path)))
    assert data.test.examples()[0]["text"].tolist() == [CLS, SEP] + [0] * 8
    assert data.test.examples()[0]["text_mask"].tolist() == [1, 1] + [0] * 8


def test_transcripts_must_be_there(make: Make, tmp_path: Path) -> None:
    silent = {video: [(a, b, text, "NONE") for a, b, text, _ in each] for video, each in SEGMENTS.items()}
    root = write_youcook(tmp_path, youcook_data(silent))
    with pytest.raises(UserError, match=r"inputs=v\+t, but none of the \d clips of youcook2 has a transcript"):
        build_data(make("captioning", "youcook2", root, inputs="v+t"))


def write_manifest(folder: Path, captions: dict[str, list[str]]) -> Path:
    """A data set of videos that are not there, in the splits that their names begin with."""
    folder.mkdir(exist_ok=True)
    lines = [
        {"split": name.split("-")[0], "video": f"clips/{name}.mp4", "captions": each} for name, each in captions.items()
    ]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


CAPTIONS = {
    "train-a": ["a dog runs", "the dog is fast", "an animal"],
    "train-b": ["a cat sleeps"],
    "validation-c": ["a bird", "it sings"],
    "test-d": ["a fish swims"],
}


def write_npy(folder: Path, names: dict[str, int], width: int = 5, record: FeatureRecord | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in names.items():
        np.save(folder / f"{name}.npy", np.arange(count * width, dtype=np.float32).reshape(count, width))
    if record is not None:
        write_record(folder, record)
    return folder


COUNTS = {"train-a": 3, "train-b": 12, "validation-c": 6, "test-d": 0}


def test_annotations_beside_features(make: Make, tmp_path: Path) -> None:
    """The videos themselves are not needed; each caption is a training example."""
    root = write_manifest(tmp_path, CAPTIONS)
    write_npy(root / "features", COUNTS)
    data = build_data(make("retrieval", "manifest", root, batch_size=4))
    columns = columns_of(data)
    assert set(columns) == COLUMNS
    assert len(columns["text"]) == 4
    assert sorted(columns["video_mask"].sum(1).tolist()) == [3, 3, 3, 6]
    validation = data.validation
    assert [row["text_mask"].sum().item() for row in rows(trained_on(validation))] == [4, 4]
    assert validation.texts()[0] == [0, 0]
    assert data.test.examples()[0]["video_mask"].sum() == 0  # a clip without frames is a clip
    assert data.meta["video_dim"] == 5
    assert data.meta["features"] == {"width": 5, "extractor": None, "rate": 1.0, "weights": None}
    assert data.meta["splits"] == {"train": 2, "validation": 1, "test": 1}


def test_one_sentence_of_each_clip_is_drawn_anew_in_each_epoch(make: Make, tmp_path: Path) -> None:
    root = write_manifest(tmp_path, CAPTIONS)
    write_npy(root / "features", COUNTS)
    data = build_data(make("retrieval", "manifest", root, sentences="one"))
    wording = data.test.encoder.wording
    drawn: dict[int, set[tuple[str, str]]] = {3: set(), 6: set()}
    for epoch in range(40):
        for batch in data.train.batches(epoch):
            for text, caption, mask in zip(batch["text"], batch["caption_output"], batch["video_mask"], strict=True):
                drawn[int(mask.sum())].add((wording.words(text[1:].tolist()), wording.words(caption.tolist())))
    assert drawn[6] == {("a cat sleeps", "a cat sleeps")}
    of_a = CAPTIONS["train-a"]
    assert drawn[3] == {(one, other) for one in of_a for other in of_a}  # drawn separately, as released
    again = list(data.train.batches(7))
    assert all(torch.equal(*pair) for pair in zip(again[0].values(), next(data.train.batches(7)).values(), strict=True))


def test_features_may_lie_anywhere_and_be_spread_evenly(make: Make, tmp_path: Path) -> None:
    root = write_manifest(tmp_path / "data", CAPTIONS)
    arrays = {name: np.arange(count, dtype=np.float64)[:, None] for name, count in (COUNTS | {"test-d": 12}).items()}
    np.savez(tmp_path / "all.npz", **arrays)
    options = {"features": tmp_path / "all.npz", "pick": "even", "feature_rate": 2.0}
    data = build_data(make("retrieval", "manifest", root, **options))
    assert data.test.examples()[0]["video"][:, 0].tolist() == [1, 3, 5, 7, 9, 11]
    assert data.meta["features"]["rate"] == 2.0


def test_annotations_may_name_the_features(make: Make, tmp_path: Path) -> None:
    root = write_manifest(tmp_path, CAPTIONS)
    manifest = root / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace(".mp4", ".npy"))
    write_npy(root / "clips", COUNTS)
    data = build_data(make("retrieval", "manifest", root, batch_size=4))
    assert sorted(columns_of(data)["video_mask"].sum(1).tolist()) == [3, 3, 3, 6]


def test_features_are_checked(make: Make, tmp_path: Path) -> None:
    root = write_manifest(tmp_path, CAPTIONS)
    with pytest.raises(UserError, match="manifest needs features of its videos") as error:
        build_data(make("retrieval", "manifest", root))
    assert "meltr data features --dataset manifest" in str(error.value)
    write_npy(root / "features", {name: 2 for name in CAPTIONS if name != "test-d"})
    with pytest.raises(UserError, match=r"1 of 4 videos .*clips/test-d\.mp4") as error:
        build_data(make("retrieval", "manifest", root))
    assert f"Their features belong in {root / 'features'}" in str(error.value)
    left = build_data(make("retrieval", "manifest", root, data={"allow_missing": True}))
    assert left.test is None
    write_npy(root / "features", COUNTS, record=FeatureRecord(5, "s3d", 1.0))
    build_data(make("retrieval", "manifest", root, video_dim=5, extractor="s3d"))
    with pytest.raises(UserError, match="the model takes 1,024"):
        build_data(make("retrieval", "manifest", root, video_dim=1024))
    with pytest.raises(UserError, match="features of s3d; the model was trained with those of s3d-howto100m"):
        build_data(make("retrieval", "manifest", root, extractor="s3d-howto100m"))
    np.save(root / "features" / "test-d.npy", np.full((2, 5), np.nan))
    with pytest.raises(UserError, match=r"test-d\.npy holds NaN"):
        build_data(make("retrieval", "manifest", root))


def test_a_trained_run_wants_the_features_that_it_was_trained_with(make: Make, tmp_path: Path) -> None:
    root, run = write_manifest(tmp_path / "data", CAPTIONS), tmp_path / "run"
    write_npy(root / "features", COUNTS, record=FeatureRecord(5, "s3d", 1.0, "ab" * 32))
    data = build_data(make("retrieval", "manifest", root, run_dir=run))
    (run / "data.json").write_text(json.dumps({"meta": dict(data.meta), "left_out": {}}))
    build_data(make("retrieval", "manifest", root, run_dir=run, weights_follow=True))
    for record in (FeatureRecord(5, "s3d", 1.0, "cd" * 32), FeatureRecord(5, "grid", 1.0)):
        write_record(root / "features", record)
        with pytest.raises(UserError, match="the model was trained with"):
            build_data(make("retrieval", "manifest", root, run_dir=run, weights_follow=True))


def test_long_texts_are_told(make: Make, tmp_path: Path) -> None:
    root = write_manifest(tmp_path, CAPTIONS | {"train-b": ["one two three four five six seven eight nine"]})
    write_npy(root / "features", COUNTS)
    context = make("retrieval", "manifest", root, caption_length=4)
    build_data(context)
    assert "1 of 7 texts have more than 8 words and are truncated (--set text_length)" in context.notes
    assert any(note.startswith("2 of 7 captions have more than 3 words") for note in context.notes)


def test_features_of_a_miniature_are_made_once(make: Make, sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = sample("msrvtt-7k")
    data = build_data(make("retrieval", "msrvtt-7k"))
    assert data.meta["features"] == {"width": Grid.width, "extractor": "grid", "rate": 4.0, "weights": None}
    corpus = read("msrvtt-7k", "retrieval", folder)
    first: Item = corpus.splits["test"][0]
    wanted = extract(corpus.media[first.media], Grid())
    row = data.test.examples()[0]
    count = int(row["video_mask"].sum())
    assert count == min(6, len(wanted))
    assert np.array_equal(row["video"][:count].numpy(), wanted[:6])

    def fails(*args: object, **given: object) -> None:
        raise AssertionError("features are made again")

    monkeypatch.setattr("meltr_univl.features.extraction.extract", fails)
    again = build_data(make("retrieval", "msrvtt-7k"))
    assert torch.equal(again.test.examples()[0]["video"], row["video"])


def test_sentiment_has_scores_and_words(make: Make, tmp_path: Path) -> None:
    data = build_data(make("retrieval", "youcook2", write_youcook(tmp_path)))
    encoder = data.test.encoder
    items = [
        Item(media="v1", id="0", transcript="cut the bread", score=-1.5),
        Item(media="v2", id="1", captions=("mix", "spread"), score=3),
    ]
    scored = Examples(UnivlEncoder(encoder.wording, Labels("sentiment", {}), clips=encoder.clips), items)
    assert set(scored[0]) == COLUMNS | {"score"}
    assert [row["score"].item() for row in rows(scored)] == [-1.5, 3.0]
    assert said(scored, "text") == said(scored, "caption_output") == ["cut the bread", "mix"]
