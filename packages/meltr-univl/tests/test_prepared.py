"""UniVL's prepared files, made on the spot as its release has them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from meltr.errors import UserError
from meltr_univl.data.prepared import LAYOUTS, Prepared, expected, find
from univl_files import SEGMENTS, WIDTH, objects, write_csv, write_features, write_youcook, youcook_data


def found(dataset: str, task: str, root: Path, **options: bool) -> Prepared:
    prepared = find(dataset, task, root, **options)
    assert prepared is not None
    return prepared


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("task", ["retrieval", "captioning"])
def test_youcook_has_an_item_for_each_segment(tmp_path: Path, task: str, protocol: int) -> None:
    write_youcook(tmp_path / "data" / "youcookii", protocol=protocol)
    prepared = found("youcook2", task, tmp_path)
    corpus = prepared.corpus
    assert corpus.task == task
    read = {
        split: [(item.media, item.span, item.captions, item.transcript) for item in items]
        for split, items in corpus.splits.items()
    }

    def rows(*videos: str) -> list[Any]:
        return [(v, (start, end), (text,), said or None) for v in videos for start, end, text, said in SEGMENTS[v]]

    assert read == {"train": rows("v2", "v1"), "test": rows("v3")}
    ids = [item.id for items in corpus.splits.values() for item in items]
    assert len(set(ids)) == len(ids)
    assert np.array_equal(prepared.features.features("v2"), np.ones((30, WIDTH), dtype=np.float32))
    assert prepared.features.record.extractor == "s3d-howto100m"
    assert prepared.text().count("youcookii") >= 4


def test_transcripts_are_preferred(tmp_path: Path) -> None:
    folder = write_youcook(tmp_path)
    said = {video: [(a, b, text, "said") for a, b, text, _ in rows] for video, rows in SEGMENTS.items()}
    for name, content in (("no_transcript", SEGMENTS), ("transcript", said)):
        path = folder / f"youcookii_data.{name}.pickle"
        path.write_bytes(pickle.dumps(youcook_data(content)))
    items = found("youcook2", "captioning", folder).corpus.splits["train"]
    assert {item.transcript for item in items} == {"said"}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda data: data.pop("v1"), r"youcookii_train\.csv, line 3: youcookii_data\.pickle has no video 'v1'"),
        (lambda data: data["v1"].pop("text"), "'v1': no text; it has start, end, transcript"),
        (lambda data: data["v1"].update(end=objects([1.0])), "2 start, 1 end, 2 text, 2 transcript"),
        (lambda data: data["v1"].update(end=3), "a column is not a list"),
        (lambda data: data.update(v1=[1]), "list instead of a dict"),
        (lambda data: data["v1"].update(end=objects([4.0, 6.0])), r"'v1', segment 1: 7\.0 to 6\.0 is not a span"),
        (lambda data: data["v1"].update(start=objects([-1.0, 7.0])), "segment 0: -1.0 to 4.96 is not a span"),
        (lambda data: data["v1"].update(end=objects([5.0, float("nan")])), "segment 1: 7.0 to nan is not a span"),
        (lambda data: data["v1"].update(start=objects(["x", 7.0])), "segment 0: 'x' to 4.96 is not a span"),
        (lambda data: data["v1"].update(text=objects(["a", "  "])), "segment 1: 'text' is '  ', not text"),
        (lambda data: data["v1"].update(transcript=objects([None, "b"])), "segment 0: 'transcript' is None"),
    ],
)
def test_wrong_segments_are_named(tmp_path: Path, change: Any, problem: str) -> None:
    data = youcook_data()
    change(data)
    with pytest.raises(UserError, match=problem):
        find("youcook2", "captioning", write_youcook(tmp_path, data))


def test_code_in_a_transcript_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "touched",)

    data = youcook_data()
    data["v1"]["transcript"] = objects(["fine", Evil()])
    with pytest.raises(UserError, match=r"youcookii_data\.pickle was refused"):
        find("youcook2", "captioning", write_youcook(tmp_path, data))
    assert not (tmp_path / "touched").exists()


def test_missing_columns_and_features(tmp_path: Path) -> None:
    folder = write_youcook(tmp_path)
    write_csv(folder / "youcookii_val.csv", ["video_id"], [["v3"]])
    with pytest.raises(UserError, match=r"youcookii_val\.csv, line 1: no column feature_file; the header has video_id"):
        find("youcook2", "retrieval", folder)
    write_youcook(tmp_path)
    write_features(folder / "youcookii_videos_features.pickle", ["v1", "v3"])
    with pytest.raises(UserError, match="1 of 3 videos") as error:
        find("youcook2", "retrieval", folder)
    assert "youcookii_videos_features.pickle" in str(error.value)
    prepared = found("youcook2", "retrieval", folder, allow_missing=True)
    assert [item.media for item in prepared.corpus.splits["train"]] == ["v1", "v1"]
    assert prepared.corpus.missing == ("v2",)


def write_msrvtt(folder: Path, videos: int = 7_013) -> Path:
    names = [f"video{(7 * number) % videos}" for number in range(videos)]  # the order of the file counts, not names
    sentences = [{"video_id": name, "caption": f"{name} says {k}"} for k in range(2) for name in reversed(names)]
    entries: list[dict[str, Any]] = [{"video_id": name, "url": "x"} for name in names]
    entries[0]["transcript"], entries[1]["transcript"], entries[2]["transcript"] = "hello there", "none", ""
    (folder / "MSRVTT_data.json").write_text(json.dumps({"videos": entries, "sentences": sentences}))
    write_csv(folder / "MSRVTT_train.9k.csv", ["video_id"], [[names[5]], [names[3]]])
    rows = [[f"ret{n}", f"msr{n}", names[n], f"test {n}"] for n in (8, 9)]
    write_csv(folder / "MSRVTT_JSFUSION_test.csv", ["key", "vid_key", "video_id", "sentence"], rows)
    write_features(folder / "msrvtt_videos_features.pickle", names)
    return folder


def test_msrvtt_is_split_by_position(tmp_path: Path) -> None:
    folder = write_msrvtt(tmp_path)
    names = [entry["video_id"] for entry in json.loads((folder / "MSRVTT_data.json").read_text())["videos"]]
    full = found("msrvtt-full", "captioning", folder).corpus.splits
    assert [item.media for items in full.values() for item in items] == names
    assert {split: len(items) for split, items in full.items()} == {"train": 6_513, "validation": 497, "test": 3}
    assert [item.transcript for item in full["train"][:4]] == ["hello there", None, None, None]
    assert full["test"][0].captions == (f"{names[7_010]} says 0", f"{names[7_010]} says 1")

    seven = found("msrvtt-7k", "retrieval", folder).corpus.splits
    assert [item.media for item in seven["train"]] == names[:7_010]
    nine = found("msrvtt-9k", "retrieval", folder).corpus.splits
    assert [item.media for item in nine["train"]] == [names[5], names[3]]
    assert nine["train"][0].captions == (f"{names[5]} says 0", f"{names[5]} says 1")
    pairs = [(item.id, item.media, item.captions) for item in nine["test"]]
    assert pairs == [("ret8", names[8], ("test 8",)), ("ret9", names[9], ("test 9",))]
    assert seven["test"] == nine["test"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ([], "no list 'videos'"),
        ({"videos": []}, "no list 'sentences'"),
        ({"videos": [{"id": 1}], "sentences": []}, "no 'video_id'"),
        ({"videos": [{"video_id": "a"}], "sentences": []}, "no caption for 1 of 1 videos: a"),
        ({"videos": [{"video_id": "a"}], "sentences": [{"video_id": "a", "caption": " "}]}, "'caption' is ' '"),
    ],
)
def test_wrong_msrvtt_files_are_named(tmp_path: Path, content: Any, problem: str) -> None:
    write_features(tmp_path / "msrvtt_videos_features.pickle", ["a"])
    (tmp_path / "MSRVTT_data.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"MSRVTT_data\.json.*{problem}"):
        find("msrvtt-full", "captioning", tmp_path)


def test_where_there_is_nothing(tmp_path: Path) -> None:
    assert find("youcook2", "retrieval", tmp_path) is None
    assert find("youcook2", "retrieval", None) is None
    assert find("youcook2", "qa", write_youcook(tmp_path)) is None
    assert find("manifest", "retrieval", tmp_path) is None
    for layout in LAYOUTS:
        assert all(each.names[0] in expected(layout.dataset, layout.tasks[0]) for each in layout.files)
    assert expected("manifest", "retrieval") == ""
