"""The data of a run: clips, texts, answers and codes of miniatures, prepared files, caches; and what can go wrong."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from meltr.context import Data, RunContext
from meltr.errors import UserError
from meltr.video.annotations import read
from meltr.video.frame_cache import CacheSettings, fill_cache
from meltr.video.frames.media import decode
from meltr.video.text.vocabulary import VOCABULARY
from meltr.video.text.wordpiece import Tokenizer
from meltr_violet.adapter import VioletAdapter
from meltr_violet.data.code_file import CodeSettings, CodeTable

build_data = VioletAdapter().build_data
Make = Callable[..., RunContext]
Sample = Callable[[str], Path]


def everything(data: Data) -> dict[str, Tensor]:
    """Return the first epoch of training in one."""
    batches = list(data.train.batches(0))
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def squares(file: Path, count: int, size: int) -> np.ndarray:
    """Return the frames floor((i + 1) n / (count + 1)), padded and resized by hand, (count, 3, size, size)."""
    found = decode(file, lambda total: [(i + 1) * total // (count + 1) for i in range(count)]).frames
    pictures = []
    for frame in found:
        height, width = frame.shape[:2]
        side = max(height, width)
        padded = np.zeros((side, side, 3), np.uint8)
        top, left = (side - height) // 2, (side - width) // 2
        padded[top : top + height, left : left + width] = frame
        resized = Image.fromarray(padded).resize((size, size), Image.Resampling.BILINEAR)
        pictures.append(np.asarray(resized).transpose(2, 0, 1))
    return np.stack(pictures)


def words(tokenizer: Tokenizer, ids: Tensor) -> str:
    names = dict(enumerate(tokenizer.file.read_text().splitlines()))
    return " ".join(names[number] for number in ids.tolist())


def write_manifest(folder: Path, clips: list[Path], rows: list[dict[str, Any]]) -> Path:
    """Write a manifest whose i-th line is about the i-th clip, which is copied beside it."""
    folder.mkdir(exist_ok=True)
    lines = []
    for clip, row in zip(clips, rows, strict=True):
        if not (folder / clip.name).exists():
            shutil.copy(clip, folder)
        lines.append(json.dumps({"video": clip.name, **row}) + "\n")
    (folder / "manifest.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture
def clips(sample: Sample) -> list[Path]:
    return sorted((sample("msvd") / "YouTubeClips").iterdir())


@pytest.fixture
def vocabulary(sample: Sample, make_context: Make, tmp_path: Path) -> Path:
    """That of a miniature, which spells what it does not know."""
    build_data(make_context("qa", "msvd", run_dir=tmp_path / "vocabulary"))
    return tmp_path / "vocabulary" / VOCABULARY


# What a batch holds


def test_a_batch_of_questions(make_context: Make, sample: Sample, tmp_path: Path) -> None:
    """Every example is a question of the annotations, with frames of its video and the number of its answer."""
    data = build_data(make_context("qa", "msvd", run_dir=tmp_path / "run", options__text_length=24))
    corpus = read("msvd", "qa", sample("msvd"))
    tokenizer = Tokenizer(tmp_path / "run" / VOCABULARY, length=24)
    rows = everything(data)
    assert rows["frames"].dtype == torch.uint8
    assert rows["frames"].shape[1:] == (2, 3, 64, 64)
    seen = {media: squares(corpus.media[media], 2, 64) for media in corpus.media}
    of_clip = {pixels.tobytes(): media for media, pixels in seen.items()}
    expected = {
        (item.media, tuple(tokenizer.encode([item.question])[0].tolist()), corpus.answers.index(item.answer))
        for item in corpus.splits["train"]
    }
    found = [
        (of_clip[frames.numpy().tobytes()], tuple(ids.tolist()), answer)
        for frames, ids, answer in zip(rows["frames"], rows["ids"], rows["answer"].tolist(), strict=True)
    ]
    assert set(found) <= expected
    assert len(found) == len(set(found)) == len(corpus.splits["train"]) // 4 * 4
    first = corpus.splits["train"][0].question
    assert words(tokenizer, tokenizer.encode([first])[0]).startswith(f"[CLS] {first.rstrip('?')} ? [SEP] [PAD]")


def test_codes_are_those_of_the_pictures(make_context: Make) -> None:
    rows = everything(build_data(make_context()))
    frames, codes = rows["frames"].double(), rows["codes"]
    assert codes.shape[1:] == (2, 2, 2)
    for y in range(2):
        for x in range(2):
            mean = frames[..., 32 * y : 32 * y + 32, 32 * x : 32 * x + 32].mean((-2, -1))
            level = (8 * mean / 256).floor().long()
            assert torch.equal(codes[..., y, x], level[..., 0] * 64 + level[..., 1] * 8 + level[..., 2])
    assert len(codes.unique()) > 5


def test_choices_are_texts_that_differ_in_their_end(make_context: Make, sample: Sample, tmp_path: Path) -> None:
    settings = {"options__text_length": 40, "data__validation": 0, "train__batch_size": 1}
    data = build_data(make_context("qa", "tgif-action", run_dir=tmp_path / "run", **settings))
    tokenizer = Tokenizer(tmp_path / "run" / VOCABULARY, length=40)
    assert data.meta["choices"] == 5
    assert "answers" not in data.meta
    rows = everything(data)
    assert rows["ids"].shape[1:] == (5, 40)
    right = [words(tokenizer, ids[answer]) for ids, answer in zip(rows["ids"], rows["answer"], strict=True)]
    items = read("tgif-action", "qa", sample("tgif-action")).splits["train"]
    ends = [f"options : {' '.join(item.choices)} answer : {item.answer} [SEP]" for item in items]
    assert sorted(text[text.index("options") : text.index("[SEP]") + 5] for text in right) == sorted(ends)
    assert all(len({tuple(row) for row in ids.tolist()}) == 5 for ids in rows["ids"])


def test_retrieval_has_an_example_a_caption(make_context: Make, sample: Sample) -> None:
    data = build_data(make_context("retrieval", "msrvtt-7k"))
    corpus = read("msrvtt-7k", "retrieval", sample("msrvtt-7k"))
    captions = sum(len(item.captions) for items in corpus.splits.values() for item in items)
    cut = {item.media for item in data.validation.items}
    train = [item for item in corpus.splits["train"] if item.media not in cut]
    assert 0 < len(train) < len(corpus.splits["train"])
    assert data.train.size == sum(len(item.captions) for item in train) < captions
    assert "answer" not in everything(data)


def test_actions_have_no_text(make_context: Make, sample: Sample) -> None:
    settings = {"options__text_length": 4, "data__validation": 0, "train__batch_size": 1}
    data = build_data(make_context("action", "kinetics400", **settings))
    rows = everything(data)
    assert torch.equal(rows["ids"], torch.tensor([[101, 102, 0, 0]]).expand(len(rows["ids"]), 4))
    corpus = read("kinetics400", "action", sample("kinetics400"))
    assert data.meta["answers"] == list(corpus.answers)
    numbers = [corpus.answers.index(item.label) for item in corpus.splits["train"]]
    assert sorted(rows["answer"].tolist()) == sorted(numbers)
    assert data.validation is None


def test_splits_share_no_video(make_context: Make) -> None:
    data = build_data(make_context("qa", "tgif-action", bilevel__outer_batch="held_out", data__held_out=2))
    assert data.held_out is not None
    assert data.held_out.size >= 2
    sizes = data.meta["splits"]
    assert set(sizes) == {"train", "validation", "test", "held_out"}
    splits = data.validation.corpus.splits
    media = [{item.media for item in items} for items in splits.values()]
    assert sum(len(each) for each in media) == len(set().union(*media)) == data.meta["videos"]


def test_batches_are_the_same_whatever_reads_them(make_context: Make, sample: Sample) -> None:
    """In memory, or by a process that decodes."""
    kept = everything(build_data(make_context()))
    anew = everything(build_data(make_context(data__workers=1, options__memory_mb=0)))
    assert all(torch.equal(kept[name], anew[name]) for name in kept)


# Vocabulary


def test_the_vocabulary_of_a_miniature_knows_every_word_whatever_the_limits(
    make_context: Make, sample: Sample, tmp_path: Path, cache: Path
) -> None:
    shutil.rmtree(cache / "vocabularies", ignore_errors=True)
    build_data(make_context(run_dir=tmp_path / "few", data__train_limit=1, data__eval_limit=1))
    build_data(make_context(run_dir=tmp_path / "all"))
    assert (tmp_path / "few" / VOCABULARY).read_text() == (tmp_path / "all" / VOCABULARY).read_text()
    tokenizer = Tokenizer(tmp_path / "few" / VOCABULARY, length=40)
    corpus = read("msvd", "qa", sample("msvd"))
    for items in corpus.splits.values():
        for item in items:
            text = words(tokenizer, tokenizer.encode([item.question])[0])
            assert "##" not in text
            assert "[UNK]" not in text


def test_a_given_vocabulary_is_copied_and_a_broken_one_refused(
    make_context: Make, vocabulary: Path, tmp_path: Path
) -> None:
    context = make_context(run_dir=tmp_path / "run", options__vocabulary=vocabulary)
    assert build_data(context).meta["vocabulary"] == len(vocabulary.read_text().splitlines())
    assert (tmp_path / "run" / VOCABULARY).read_text() == vocabulary.read_text()
    (tmp_path / "words.txt").write_text("cat\ndog\n")
    with pytest.raises(UserError, match=r"words\.txt is not a vocabulary for this model"):
        build_data(make_context(run_dir=tmp_path / "other", options__vocabulary=tmp_path / "words.txt"))
    assert not (tmp_path / "other" / VOCABULARY).exists()


def test_a_small_model_from_scratch_takes_the_words_of_the_data_set(
    make_context: Make, clips: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repository, name: None)
    root = write_manifest(tmp_path / "data", clips, [{**row, "question": "zebra?"} for row in questions(len(clips))])
    build_data(make_context("qa", "manifest", data_root=root, run_dir=tmp_path / "run"))
    assert "zebra" in (tmp_path / "run" / VOCABULARY).read_text().splitlines()
    for needy in ({"size": "base"}, {"weights": "some.pt"}):
        given = {f"options__{name}": value for name, value in needy.items()}
        with pytest.raises(UserError, match="There is no vocabulary"):
            build_data(make_context("qa", "manifest", data_root=root, **given))


# Codes


def test_without_codes_the_loss_is_left_out(make_context: Make) -> None:
    data = build_data(make_context(options__codes="none"))
    assert data.left_out == {"mvm": "codes=none"}
    assert "codes" not in everything(data)
    assert build_data(make_context(options__codes="none", losses="answer,vtm")).left_out == {}


def test_real_data_without_codes(make_context: Make, sample: Sample, vocabulary: Path) -> None:
    data = build_data(make_context(data_root=sample("msvd"), options__vocabulary=vocabulary))
    assert "meltr data codes" in data.left_out["mvm"]
    coloured = make_context(data_root=sample("msvd"), options__vocabulary=vocabulary, options__codes="colour")
    assert build_data(coloured).left_out == {}


def write_codes(path: Path, keys: list[str], *, side: int = 2, sampler: str = "centres") -> Path:
    table = CodeTable(CodeSettings(2, sampler, 32 * side, "f" * 64))
    table.rows = {key: np.full((2, side, side), number, np.int16) for number, key in enumerate(keys)}
    table.write(path)
    return path


def test_codes_of_a_file(make_context: Make, sample: Sample, vocabulary: Path, tmp_path: Path) -> None:
    corpus = read("msvd", "qa", sample("msvd"))
    keys = sorted(corpus.media)
    file = write_codes(tmp_path / "codes.safetensors", keys[1:])
    context = make_context(data_root=sample("msvd"), options__vocabulary=vocabulary, options__codes=str(file))
    rows = everything(build_data(context))
    of_clip = {squares(path, 2, 64).tobytes(): key for key, path in corpus.media.items()}
    for frames, codes in zip(rows["frames"], rows["codes"], strict=True):
        key = of_clip[frames.numpy().tobytes()]
        assert set(codes.flatten().tolist()) == {-100 if key == keys[0] else keys.index(key) - 1}


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"side": 3}, r"shape \(2, 3, 3\) .* the clips need \(2, 2, 2\)"),
        ({"sampler": "middles"}, r"frames 'middles', but the clips use the frames 'centres'"),
    ],
)
def test_codes_of_other_clips(
    make_context: Make, sample: Sample, vocabulary: Path, tmp_path: Path, made: dict[str, Any], message: str
) -> None:
    file = write_codes(tmp_path / "codes.safetensors", ["a"], **made)
    context = make_context(data_root=sample("msvd"), options__vocabulary=vocabulary, options__codes=str(file))
    with pytest.raises(UserError, match=message) as refused:
        build_data(context)
    assert "meltr data codes" in str(refused.value.hint)


# VIOLET's prepared files


@pytest.fixture
def samples(vocabulary_file: Path) -> Path:
    return vocabulary_file.parent


REAL = {"options__frames": 5, "options__image_size": 224, "options__text_length": 25}


def test_prepared_files_of_retrieval(make_context: Make, samples: Path, vocabulary_file: Path, tmp_path: Path) -> None:
    """The ten real clips, with their real captions."""
    beside = samples.parent / "captioned_clips" / "index.jsonl"
    if not beside.is_file():
        pytest.skip(f"no captions {beside}")
    root = tmp_path / "msrvtt"
    shutil.copytree(samples / "extracted", root)
    rows = [json.loads(line) for line in beside.read_text().splitlines()]
    captions = {row["file"].removeprefix("msrvtt_").removesuffix(".mp4"): row["captions"][0] for row in rows}
    captions = {key: text for key, text in captions.items() if key.startswith("video70")}
    content = {"sentences": [{"video_id": key, "caption": text} for key, text in captions.items()]}
    for name in ("train_7k.json", "test.json"):
        (root / name).write_text(json.dumps(content))
    context = make_context(
        "retrieval", "msrvtt-7k", data_root=tmp_path, options__vocabulary=vocabulary_file, data__validation=0, **REAL
    )
    data = build_data(context)
    assert any(note.startswith("prepared files:") for note in context.notes)
    assert data.meta["splits"] == {"train": 10, "test": 10}
    assert data.left_out == {}
    frames = pickle.loads((root / "msrvtt.pkl").read_bytes())
    codes = pickle.loads((root / "msrvtt_vq.pkl").read_bytes())
    example = data.test.examples()[0]
    item = data.test.items[0]
    assert len(frames[item.media]) == 5
    assert example["frames"].shape == (5, 3, 224, 224)
    assert not example["frames"][:, :, :27].any()  # 240 x 320: black above and below
    assert example["frames"][:, :, 28:196].any()
    assert words(Tokenizer(vocabulary_file), data.test.texts()[1]["ids"][0]).startswith(
        f"[CLS] {captions[item.media][:8]}"
    )
    rows_ = everything(data)
    expected = sorted(value.astype(int).tolist() for value in codes.values())
    assert len(rows_["codes"]) == 8  # two batches of four
    assert all(row in expected for row in rows_["codes"].tolist())


def test_prepared_files_of_questions(make_context: Make, samples: Path, vocabulary_file: Path, tmp_path: Path) -> None:
    """Real questions and answers; the frames are those of other real clips."""
    texts = json.loads((samples / "data" / "txt_msvd-qa.json").read_text())
    frames = list(pickle.loads((samples / "extracted" / "msrvtt.pkl").read_bytes()).values())
    videos = dict.fromkeys(row["video"] for name in ("train", "val", "test") for row in texts[name])
    (tmp_path / "img_msvd.pkl").write_bytes(pickle.dumps({key: frames[i % 10] for i, key in enumerate(videos)}))
    (tmp_path / "txt_msvd-qa.json").write_text(json.dumps(texts))
    context = make_context("qa", "msvd", data_root=tmp_path, options__vocabulary=vocabulary_file, **REAL)
    data = build_data(context)
    assert data.meta["splits"] == {"train": 200, "validation": 50, "test": 50}
    assert data.meta["answers"] == texts["vocab"]
    assert set(data.left_out) == {"mvm"}
    for number in (0, 17, 49):
        example, row = data.test.examples()[number], texts["test"][number]
        assert example["answer"] == row["answer"]
        assert example["frames"].shape == (5, 3, 224, 224)
        assert words(Tokenizer(vocabulary_file), example["ids"]).startswith(f"[CLS] {row['question'].split()[0]}")
    other = make_context("qa", "msvd", data_root=tmp_path, options__vocabulary=vocabulary_file, options__frames=2)
    with pytest.raises(UserError, match=r"img_msvd\.pkl holds 5 frames per video; frames is 2"):
        build_data(other)


# A frame cache


def test_a_frame_cache_in_place_of_the_videos(
    make_context: Make, sample: Sample, vocabulary: Path, tmp_path: Path
) -> None:
    media = read("msvd", "qa", sample("msvd")).media
    fill_cache(media, tmp_path / "cache", CacheSettings(2, size=None, quality=None))
    given = {"data_root": sample("msvd"), "options__vocabulary": vocabulary, "data__workers": 0}
    decoded = everything(build_data(make_context(**given)))
    cached = everything(build_data(make_context(**given, options__frame_cache=tmp_path / "cache")))
    assert all(torch.equal(decoded[name], cached[name]) for name in decoded)
    with pytest.raises(UserError, match="4 frames were requested"):
        build_data(make_context(**given, options__frame_cache=tmp_path / "cache", options__frames=4))


def test_a_cache_of_other_frames_is_remembered_and_needs_codes_of_them(
    make_context: Make, sample: Sample, vocabulary: Path, tmp_path: Path
) -> None:
    media = read("msvd", "qa", sample("msvd")).media
    fill_cache(media, tmp_path / "cache", CacheSettings(2, sampler="middles"))
    given = {"data_root": sample("msvd"), "options__vocabulary": vocabulary, "options__frame_cache": tmp_path / "cache"}
    assert build_data(make_context(**given)).meta["sampler"] == "middles"
    fitting = write_codes(tmp_path / "fitting.safetensors", ["a"], sampler="middles")
    assert build_data(make_context(**given, options__codes=str(fitting))).left_out == {}
    other = write_codes(tmp_path / "other.safetensors", ["a"])
    with pytest.raises(UserError, match="the clips use the frames 'middles'"):
        build_data(make_context(**given, options__codes=str(other)))


# What can go wrong


def test_no_data_root_names_the_published_and_the_prepared_files(make_context: Make, tmp_path: Path) -> None:
    for root in (tmp_path / "absent", tmp_path):
        with pytest.raises(UserError) as refused:
            build_data(make_context("qa", "msvd", data_root=root))
        text = str(refused.value)
        for name in ("train_qa.json", "youtube_mapping.txt", "img_msvd.pkl", "txt_msvd-qa.json", "msvd_vq", "--sample"):
            assert name in text, text
    with pytest.raises(UserError) as refused:
        build_data(make_context("qa", "msvd", data_root=tmp_path, options__prepared=False))
    assert "img_msvd.pkl" not in str(refused.value)
    with pytest.raises(UserError) as refused:
        build_data(make_context("action", "kinetics400", data_root=tmp_path))
    assert "prepared" not in str(refused.value)


def test_missing_videos_are_not_blamed_on_the_prepared_files(
    make_context: Make, sample: Sample, vocabulary: Path, tmp_path: Path
) -> None:
    shutil.copytree(sample("msvd"), tmp_path / "msvd")
    gone = next(iter(sorted((tmp_path / "msvd" / "YouTubeClips").iterdir())))
    gone.unlink()
    given = {"data_root": tmp_path / "msvd", "options__vocabulary": vocabulary}
    with pytest.raises(UserError, match=r"1 of 20 videos") as refused:
        build_data(make_context(**given))
    assert "--allow-missing" in str(refused.value)
    assert "img_msvd.pkl" not in str(refused.value)
    context = make_context(**given, data__allow_missing=True)
    build_data(context)
    assert any("1 of 20 videos are missing" in note for note in context.notes)


def questions(count: int, split: str = "train", answer: str = "yes") -> list[dict[str, Any]]:
    return [{"split": split, "question": "is it there?", "answer": answer} for _ in range(count)]


def test_a_damaged_video_is_named_or_left_out_by_the_cache(
    make_context: Make, clips: list[Path], vocabulary: Path, tmp_path: Path
) -> None:
    rows = [*questions(5), *questions(1, "test")]
    root = write_manifest(tmp_path / "data", clips[:6], rows)
    damaged = root / clips[2].name
    damaged.write_bytes(damaged.read_bytes()[:600])
    given = {"data_root": root, "options__vocabulary": vocabulary, "data__workers": 0, "data__validation": 0}
    with pytest.raises(UserError, match=clips[2].name):
        everything(build_data(make_context("qa", "manifest", **given)))
    media = read("manifest", "qa", root).media
    fill_cache(media, tmp_path / "cache", CacheSettings(2))
    context = make_context("qa", "manifest", **given, options__frame_cache=tmp_path / "cache")
    data = build_data(context)
    assert data.meta["splits"] == {"train": 4, "test": 1}
    assert any("could not be decoded" in note and clips[2].name in note for note in context.notes)
    assert len(everything(data)["frames"]) == 4


def test_short_videos_and_images(make_context: Make, vocabulary: Path, tmp_path: Path) -> None:
    """A picture is a video of one frame, which repeats."""
    (tmp_path / "data").mkdir()
    rng = np.random.default_rng(0)
    lines = []
    for number in range(4):
        Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(tmp_path / "data" / f"{number}.png")
        lines.append({"image": f"{number}.png", "split": "train", "label": "ab"[number % 2]})
    (tmp_path / "data" / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = {"data_root": tmp_path / "data", "options__vocabulary": vocabulary, "data__validation": 0}
    rows = everything(build_data(make_context("action", "manifest", **given, data__workers=0)))
    assert torch.equal(rows["frames"][:, 0], rows["frames"][:, 1])
    assert len({frames.numpy().tobytes() for frames in rows["frames"]}) == 4


def test_an_answer_outside_the_vocabulary_has_no_number(
    make_context: Make, clips: list[Path], vocabulary: Path, tmp_path: Path
) -> None:
    rows = [*questions(2), *questions(2, answer="no"), *questions(1, "test", "perhaps"), *questions(1, "test", "no")]
    root = write_manifest(tmp_path / "data", clips[:6], rows)
    context = make_context(
        "qa", "manifest", data_root=root, options__vocabulary=vocabulary, data__workers=0, data__validation=0
    )
    data = build_data(context)
    assert data.meta["answers"] == ["no", "yes"]
    assert [int(data.test.examples()[number]["answer"]) for number in range(2)] == [-100, 0]
    assert any("Answers outside the vocabulary of 2" in note for note in context.notes)


def test_long_questions_are_cut_with_a_note(make_context: Make) -> None:
    context = make_context(options__text_length=6)
    rows = everything(build_data(context))
    (note,) = [note for note in context.notes if "are truncated" in note]
    assert "have more than 4 words" in note
    assert "text_length" in note
    assert rows["ids"].shape[1] == 6
    assert set(rows["ids"][:, 0].tolist()) == {101}
    assert not [note for note in make_context(options__text_length=40).notes if "are truncated" in note]


def test_a_split_without_examples_is_refused(
    make_context: Make, clips: list[Path], vocabulary: Path, tmp_path: Path
) -> None:
    root = write_manifest(tmp_path / "data", clips[:2], questions(2, "test"))
    with pytest.raises(UserError, match="no example for the split train"):
        build_data(make_context("qa", "manifest", data_root=root, options__vocabulary=vocabulary))
