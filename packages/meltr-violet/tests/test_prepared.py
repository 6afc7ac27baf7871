"""VIOLET's prepared files: frames, texts and codes, from the real samples and from files made on the spot."""

from __future__ import annotations

import base64
import io
import json
import multiprocessing
import pickle
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from meltr import UserError
from meltr.video.frames.source import FrameSource
from meltr_violet.codes import CodeSource, PreparedCodes, codes_or_ignored
from meltr_violet.prepared import LAYOUTS, expected, find, find_codes
from meltr_violet.prepared_frames import PreparedFrames
from meltr_violet.prepared_texts import OUTSIDE
from places import shared

CLIPS = [f"video{number}" for number in range(7010, 7020)]


@pytest.fixture
def samples() -> Path:
    return shared("data", "violet_samples")


def jpeg(value: int, size: tuple[int, int] = (24, 16), mode: str = "RGB") -> str:
    """A picture of one grey, which JPEG keeps exactly; base64."""
    buffer = io.BytesIO()
    Image.new(mode, size, (value, value, value) if mode == "RGB" else value).save(buffer, "JPEG")
    return base64.b64encode(buffer.getvalue()).decode()


def write_frames(path: Path, videos: dict[str, int], count: int = 5) -> None:
    """Frame t of a video is all of the grey v + t."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps({key: [jpeg(value + t) for t in range(count)] for key, value in videos.items()}))


def write_table(path: Path, rows: list[list[str]]) -> None:
    lines = ["\t".join(row) + "\n" for row in rows]
    starts = np.cumsum([0, *(len(line) for line in lines)])[:-1]
    path.write_text("".join(lines))
    path.with_suffix(".lineidx").write_text("".join(f"{start}\n" for start in starts))


def write_codes(path: Path, keys, shape=(5, 7, 7)) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    codes = {key: rng.integers(0, 8192, shape).astype(np.int16) for key in keys}
    path.write_bytes(pickle.dumps(codes))
    return codes


def ask(video: str, answer: int, question: str = "what is it?", **options: str) -> dict:
    return {"video": video, "question": question, "answer": answer, **options}


MSVD = {
    "train": [ask("a", 1), ask("b", 0, "who is it?"), ask("a", -1)],
    "val": [ask("c", 2)],
    "test": [ask("d", 2), ask("d", -1)],
    "vocab": ["cat", "dog", "man"],
}


def write_msvd(folder: Path, texts: dict | None = None, videos: str = "abcd") -> None:
    write_frames(folder / "img_msvd.pkl", {key: 40 * number for number, key in enumerate(videos)})
    (folder / "txt_msvd-qa.json").write_text(json.dumps(MSVD if texts is None else texts))


# Frames


def test_the_real_table_and_pickle_are_the_same_and_what_pillow_decodes(samples):
    folder = samples / "extracted"
    frames, table = PreparedFrames(folder / "msrvtt.pkl"), PreparedFrames(folder / "msrvtt.tsv")
    raw = pickle.loads((folder / "msrvtt.pkl").read_bytes())
    assert isinstance(frames, FrameSource)
    assert list(frames) == list(table) == list(raw)
    assert sorted(frames) == CLIPS
    assert frames.count == table.count == 5
    for key, encoded in raw.items():
        pictures = [Image.open(io.BytesIO(base64.b64decode(each))).convert("RGB") for each in encoded]
        np.testing.assert_array_equal(frames.frames(key), np.stack(pictures))
        np.testing.assert_array_equal(frames.frames(key), table.frames(key))
    assert frames.frames("video7010").shape == (5, 240, 320, 3)


def test_real_images_of_pre_training(samples):
    frames = PreparedFrames(samples / "data" / "img_cc3m_val.tsv")
    texts = json.loads((samples / "data" / "txt_cc3m.json").read_text())
    codes = PreparedCodes(samples / "data" / "vq_cc3m.pkl")
    assert set(frames) == set(texts["val"])
    assert frames.count == 1
    shapes = {frames.frames(key).shape for key in frames}
    assert {shape[2] for shape in shapes} == {384}
    assert len(shapes) > 10
    assert all(codes.codes(key).shape == (1, 7, 7) for key in frames)


def test_frames_in_their_order_and_grey_ones_in_three_channels(tmp_path):
    rows = {"x": [jpeg(10), jpeg(20), jpeg(30)], "y": [jpeg(1, mode="L"), jpeg(2, mode="L"), jpeg(3, mode="L")]}
    (tmp_path / "f.pkl").write_bytes(pickle.dumps(rows))
    write_table(tmp_path / "f.tsv", [[key, *row] for key, row in rows.items()])
    for frames in (PreparedFrames(tmp_path / "f.pkl"), PreparedFrames(tmp_path / "f.tsv")):
        assert frames.count == 3
        assert len(frames) == 2
        assert "x" in frames
        assert "z" not in frames
        assert frames.frames("x").shape == (3, 16, 24, 3)
        assert [set(np.unique(each)) for each in frames.frames("x")] == [{10}, {20}, {30}]
        assert [set(np.unique(each)) for each in frames.frames("y")] == [{1}, {2}, {3}]
        with pytest.raises(KeyError):
            frames.frames("z")


def test_a_table_without_its_index_is_looked_through(tmp_path):
    write_table(tmp_path / "f.tsv", [["x", jpeg(1)], ["y", jpeg(2)]])
    (tmp_path / "f.lineidx").unlink()
    frames = PreparedFrames(tmp_path / "f.tsv")
    assert list(frames) == ["x", "y"]
    assert frames.frames("y").max() == 2


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_of_pickle(tmp_path, protocol):
    (tmp_path / "f.pkl").write_bytes(pickle.dumps({"x": [jpeg(7), jpeg(8)]}, protocol=protocol))
    assert PreparedFrames(tmp_path / "f.pkl").frames("x")[1].min() == 8


@pytest.mark.parametrize("name", ["f.pkl", "f.tsv"])
def test_only_places_are_kept(tmp_path, name):
    """Twenty megabytes of frames cost neither memory nor bytes on the way to another process."""
    big = "A" * 400_000
    rows = {f"v{number}": [big] * 5 for number in range(10)}
    distinct = {key: [f"{key}{number}{each}" for number, each in enumerate(row)] for key, row in rows.items()}
    (tmp_path / "f.pkl").write_bytes(pickle.dumps(distinct))
    write_table(tmp_path / "f.tsv", [[key, *row] for key, row in distinct.items()])
    tracemalloc.start()
    frames = PreparedFrames(tmp_path / name)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5_000_000
    assert len(pickle.dumps(frames)) < 10_000


def _first_pixel(frames: PreparedFrames, key: str) -> int:
    return int(frames.frames(key)[0, 0, 0, 0])


def test_frames_in_another_process(tmp_path):
    write_frames(tmp_path / "f.pkl", {"x": 10, "y": 50}, count=2)
    frames = PreparedFrames(tmp_path / "f.pkl")
    assert _first_pixel(frames, "x") == 10  # The file is open here.
    assert _first_pixel(pickle.loads(pickle.dumps(frames)), "y") == 50
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(_first_pixel, (frames, "y")) == 50


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], r"f\.pkl: it holds list, not frames"),
        ({}, r"f\.pkl: it holds an empty dict"),
        ({3: ["x"]}, r"f\.pkl: the name of a video is 3"),
        ({"a": "x" * 300}, r"f\.pkl, a: Span instead of a list"),
        ({"a": []}, r"f\.pkl, a: list instead of a list of frames"),
        ({"a": [5]}, r"f\.pkl, a: int instead of a JPEG"),
        ({"a": [jpeg(1)], "b": [jpeg(1), jpeg(2)]}, r"f\.pkl, b: 2 frames, but 1 of a"),
    ],
)
def test_other_pickles_are_named_with_the_place(tmp_path, content, message):
    (tmp_path / "f.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=message):
        PreparedFrames(tmp_path / "f.pkl")


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ("!" * 300, "no JPEG in base64: Error"),
        (base64.b64encode(b"\x89PNG" * 100).decode(), "no JPEG in base64: UnidentifiedImageError"),
        (jpeg(1, (64, 64))[:480], "no JPEG in base64"),
        (jpeg(1, (8, 8)), "its frames differ in size"),
    ],
)
def test_damaged_frames_are_named(tmp_path, frame, message):
    (tmp_path / "f.pkl").write_bytes(pickle.dumps({"good": [jpeg(1), jpeg(1)], "bad": [jpeg(1), frame]}))
    frames = PreparedFrames(tmp_path / "f.pkl")
    assert frames.frames("good").shape == (2, 16, 24, 3)
    with pytest.raises(UserError, match=rf"f\.pkl, bad(, frame 1)?: {message}"):
        frames.frames("bad")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("0\nx\n", r"f\.lineidx, line 2: 'x' is not the number of a byte"),
        ("0\n7\n", r"f\.lineidx, line 2: no line of f\.tsv begins at byte 7"),
        ("0\n99999999\n", r"f\.lineidx, line 1: no line"),
        ("", r"f\.lineidx: no lines"),
    ],
)
def test_a_wrong_line_index_is_named(tmp_path, lines, message):
    write_table(tmp_path / "f.tsv", [["x", jpeg(1)], ["y", jpeg(2)]])
    (tmp_path / "f.lineidx").write_text(lines)
    if "99999999" in lines:
        message = message.replace("line 1: no line", r"line \d: no line")
    with pytest.raises(UserError, match=message):
        PreparedFrames(tmp_path / "f.tsv")


def test_wrong_tables_are_named(tmp_path):
    table = tmp_path / "f.tsv"
    table.write_text("")
    with pytest.raises(UserError, match=r"Cannot read .*f\.tsv"):
        PreparedFrames(table)
    with pytest.raises(UserError, match=r"Cannot read .*absent\.tsv"):
        PreparedFrames(tmp_path / "absent.tsv")
    table.write_text("<html>\nno table\n")
    with pytest.raises(UserError, match=r"f\.tsv, line 1: the line at byte 0 of f\.tsv is not a name"):
        PreparedFrames(table)
    write_table(table, [["x", jpeg(1)], ["x", jpeg(2)]])
    with pytest.raises(UserError, match=r"line 2: x is there twice"):
        PreparedFrames(table)
    write_table(table, [["x", jpeg(1)], ["y", jpeg(2), jpeg(3)]])
    with pytest.raises(UserError, match=r"f\.tsv, y: 2 frames, but 1"):
        PreparedFrames(table).frames("y")


# Data sets


@pytest.mark.parametrize("folder", [".", "msrvtt", "_data", "_data/msrvtt", "data/msrvtt"])
def test_real_clips_with_their_codes_in_the_form_of_meltr(samples, tmp_path, folder):
    root = tmp_path / folder
    root.mkdir(parents=True, exist_ok=True)
    shutil.copy(samples / "extracted" / "msrvtt.pkl", root / "img_msrvtt.pkl")
    shutil.copy(samples / "extracted" / "msrvtt_vq.pkl", root)
    sentences = [{"video_id": key, "caption": f"{word} {key}"} for word in ("one", "two") for key in CLIPS[:7]]
    (root / "train_7k.json").write_text(json.dumps({"sentences": sentences}))
    last = [{"video_id": key, "caption": f"last {key}"} for key in CLIPS[7:]]
    (root / "test.json").write_text(json.dumps({"sentences": last}))
    found = find("msrvtt-7k", "retrieval", tmp_path)
    assert found is not None
    assert isinstance(found.codes, CodeSource)
    assert list(found.corpus.splits) == ["train", "test"]
    assert [item.media for item in found.corpus.splits["train"]] == CLIPS[:7]
    assert found.corpus.splits["train"][0].captions == ("one video7010", "two video7010")
    assert [item.captions for item in found.corpus.splits["test"]] == [(f"last {key}",) for key in CLIPS[7:]]
    assert found.corpus.media == {}
    assert found.corpus.missing == ()
    for item in found.corpus.splits["test"]:
        assert found.frames.frames(item.media).shape == (5, 240, 320, 3)
        assert found.codes.codes(item.media).shape == (5, 7, 7)
    assert found.corpus.notes == ("train_7k.json has 7 training clips with frames; msrvtt-7k has 7,010.",)
    assert found.text().count("msrvtt") >= 2
    assert "train_7k.json" in found.text()
    assert find("msrvtt-9k", "retrieval", tmp_path) is None


def test_real_captions_in_the_original_form(samples, tmp_path):
    texts = json.loads((samples / "data" / "txt_msrvtt-retrieval.json").read_text())
    (tmp_path / "txt_msrvtt-retrieval.json").write_text(json.dumps(texts))
    named = list(dict.fromkeys(row["video"] for rows in texts.values() for row in rows))
    write_table(tmp_path / "img_msrvtt.tsv", [[key, jpeg(3)] for key in named])
    found = find("msrvtt-9k", "retrieval", tmp_path)
    assert found is not None
    assert found.codes is None
    for split, name in (("train", "train"), ("validation", "val"), ("test", "test")):
        items = found.corpus.splits[split]
        pairs = {(item.media, caption) for item in items for caption in item.captions}
        assert pairs == {(row["video"], row["caption"].strip()) for row in texts[name]}
        assert len({item.media for item in items}) == len(items)


def test_real_open_ended_questions(samples, tmp_path):
    texts = json.loads((samples / "data" / "txt_msvd-qa.json").read_text())
    write_msvd(tmp_path, texts, videos="")
    write_frames(
        tmp_path / "img_msvd.pkl", {row["video"]: 1 for name in ("train", "val", "test") for row in texts[name]}
    )
    found = find("msvd", "qa", tmp_path)
    assert found is not None
    assert found.corpus.answers == tuple(texts["vocab"])
    for split, name in (("train", "train"), ("validation", "val"), ("test", "test")):
        items = found.corpus.splits[split]
        assert [found.corpus.answers.index(item.answer) for item in items] == [row["answer"] for row in texts[name]]
        assert [item.question for item in items] == [row["question"] for row in texts[name]]
        assert [item.media for item in items] == [row["video"] for row in texts[name]]
    assert found.corpus.notes == ()


def test_real_questions_with_choices(samples, tmp_path):
    texts = json.loads((samples / "data" / "txt_tgif-action.json").read_text())
    (tmp_path / "tgif").mkdir()
    (tmp_path / "tgif" / "txt_tgif-action.json").write_text(json.dumps(texts))
    named = {row["video"]: 1 for rows in texts.values() for row in rows}
    write_frames(tmp_path / "tgif" / "img_tgif.pkl", named, count=2)
    found = find("tgif-action", "qa", tmp_path)
    assert found is not None
    assert found.corpus.answers == ()
    for row, item in zip(texts["test"], found.corpus.splits["test"], strict=True):
        assert item.choices == tuple(row[f"option_{number}"].strip() for number in range(5))
        assert item.correct == row["answer"]
        assert item.answer == item.choices[row["answer"]]
    assert find("tgif-transition", "qa", tmp_path) is None
    assert find("tgif-frame", "qa", tmp_path) is None


def test_an_answer_outside_the_vocabulary_is_kept_and_never_right(tmp_path):
    write_msvd(tmp_path)
    found = find("msvd", "qa", tmp_path)
    assert found is not None
    train, test = found.corpus.splits["train"], found.corpus.splits["test"]
    assert [item.answer for item in train] == ["dog", "cat", OUTSIDE]
    assert [item.id for item in train] == ["0", "1", "2"]
    assert [item.answer for item in test] == ["man", OUTSIDE]
    assert OUTSIDE not in found.corpus.answers
    assert found.corpus.notes == (
        "Answers outside the vocabulary of 3, kept and always wrong: 1 of 3 in train, 1 of 2 in test.",
    )


def test_without_a_vocabulary_answers_have_numbers(tmp_path):
    write_msvd(tmp_path, {"train": [ask("a", 0), ask("b", -1)], "test": [ask("d", 3)]})
    found = find("msvd", "qa", tmp_path)
    assert found is not None
    assert found.corpus.answers == ("0", "1", "2", "3")
    assert found.corpus.splits["test"][0].answer == "3"
    assert list(found.corpus.splits) == ["train", "test"]
    assert "has no vocab" in found.corpus.notes[0]


def test_an_empty_validation_split_is_none(tmp_path):
    write_msvd(tmp_path, {**MSVD, "val": []})
    found = find("msvd", "qa", tmp_path)
    assert found is not None
    assert list(found.corpus.splits) == ["train", "test"]


def test_missing_frames(tmp_path):
    write_msvd(tmp_path, videos="abd")
    with pytest.raises(UserError, match=r"1 of 4 videos that the annotations name are not in .*: c") as refused:
        find("msvd", "qa", tmp_path)
    assert "img_msvd.pkl" in str(refused.value.hint)
    assert "--allow-missing" in str(refused.value.hint)
    found = find("msvd", "qa", tmp_path, allow_missing=True)
    assert found is not None
    assert found.corpus.missing == ("c",)
    assert list(found.corpus.splits) == ["train", "test"]
    assert any("1 of 4 videos are missing" in note for note in found.corpus.notes)


def test_codes_that_do_not_fit(tmp_path):
    write_msvd(tmp_path)
    codes = write_codes(tmp_path / "msvd_vq.pkl", "abd")
    found = find("msvd", "qa", tmp_path)
    assert found is not None
    assert found.codes is not None
    assert any("msvd_vq.pkl has no codes for 1 of 4 videos: c." in note for note in found.corpus.notes)
    np.testing.assert_array_equal(codes_or_ignored(found.codes, "b"), codes["b"])
    assert set(codes_or_ignored(found.codes, "c").flat) == {-1}
    assert codes_or_ignored(found.codes, "c").shape == (5, 7, 7)
    write_codes(tmp_path / "msvd_vq.pkl", "abcd", (4, 7, 7))
    with pytest.raises(UserError, match=r"msvd_vq\.pkl: codes of 4 frames a video, but img_msvd\.pkl has 5"):
        find("msvd", "qa", tmp_path)


def test_codes_alone_go_with_published_videos(tmp_path):
    codes = write_codes(tmp_path / "vq_msrvtt.pkl", ["video1", "video2"])
    for dataset in ("msrvtt-7k", "msrvtt-9k"):
        found = find_codes(dataset, tmp_path)
        assert found is not None
        np.testing.assert_array_equal(found.codes("video2"), codes["video2"])
    assert find("msrvtt-7k", "retrieval", tmp_path) is None
    assert find_codes("msvd", tmp_path) is None
    assert find_codes("kinetics400", tmp_path) is None
    assert find_codes("msvd", None) is None


def test_nothing_where_files_are_absent(tmp_path):
    assert find("msvd", "qa", None) is None
    assert find("msvd", "qa", tmp_path) is None
    assert find("msvd", "qa", tmp_path / "absent") is None
    write_msvd(tmp_path)
    assert find("msvd", "retrieval", tmp_path) is None
    assert find("manifest", "qa", tmp_path) is None
    assert find("kinetics400", "action", tmp_path) is None
    (tmp_path / "img_msvd.pkl").unlink()
    assert find("msvd", "qa", tmp_path) is None


def test_expected_names_every_file():
    for layout in LAYOUTS:
        text = expected(layout.dataset, layout.tasks[0])
        assert all(name in text for file in layout.files for name in file.names)
    assert expected("kinetics400", "action") == ""
    assert expected("msvd", "retrieval") == ""


OPTIONS = {f"option_{number}": f"o{number}" for number in range(3)}


@pytest.mark.parametrize(
    ("dataset", "texts", "message"),
    [
        ("msvd", [], r"msvd-qa\.json: list instead of an object"),
        ("msvd", {**MSVD, "train": {}}, r"msvd-qa\.json, train: dict instead of a list"),
        ("msvd", {**MSVD, "train": [ask("a", 3)]}, r"train, record 1: 'answer' is 3, not a whole number from -1 to 2"),
        ("msvd", {**MSVD, "test": [ask("a", 1), ask("a", -2)]}, r"test, record 2: 'answer' is -2"),
        ("msvd", {**MSVD, "test": [ask("a", True)]}, r"test, record 1: 'answer' is True"),
        ("msvd", {**MSVD, "test": [{"video": "a", "answer": 1}]}, r"test, record 1: no 'question'"),
        ("msvd", {**MSVD, "vocab": ["a", "b", "a"]}, r"vocab: 'a' is there twice"),
        ("msvd", {**MSVD, "vocab": {"a": 1}}, r"vocab: dict instead of a list"),
        ("msvd", {"train": MSVD["train"], "vocab": MSVD["vocab"]}, r"no list 'test'; it has train, vocab"),
        ("msvd", {**MSVD, "train": []}, r"no example for the split train"),
        ("tgif-action", {"train": [ask("a", 0)], "test": []}, r"train, record 1: no option_0 and option_1"),
        ("tgif-action", {"train": [ask("a", 3, **OPTIONS)], "test": []}, r"'answer' is 3, not a whole .* from 0 to 2"),
        ("tgif-action", {"train": [ask("a", -1, **OPTIONS)], "test": []}, r"'answer' is -1"),
        ("tgif-action", {"train": [ask("a", 1, option_0="x", option_1=None)], "test": []}, r"'option_1' is None"),
        ("msrvtt-7k", {"train": [{"video": "a"}], "test": []}, r"train, record 1: no 'caption'"),
        ("msrvtt-7k", {"train": [{"caption": "a"}], "test": []}, r"train, record 1: no 'video'"),
    ],
)  # fmt: skip
def test_malformed_texts_are_named_with_the_place(tmp_path, dataset, texts, message):
    name, file = {
        "msvd": ("msvd", "txt_msvd-qa.json"),
        "tgif-action": ("tgif", "txt_tgif-action.json"),
        "msrvtt-7k": ("msrvtt", "txt_msrvtt-retrieval.json"),
    }[dataset]
    write_frames(tmp_path / f"img_{name}.pkl", dict.fromkeys("abcd", 1), count=1)
    (tmp_path / file).write_text(json.dumps(texts))
    with pytest.raises(UserError, match=message):
        find(dataset, "retrieval" if dataset == "msrvtt-7k" else "qa", tmp_path)
