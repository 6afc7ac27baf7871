"""The data of a run: clips, captions, questions, wrong items, views, caches; and what can go wrong."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from meltr.context import Data, RunContext
from meltr.data import miniature
from meltr.data.annotations import read
from meltr.data.frame_cache import CacheSettings, fill_cache
from meltr.data.media import decode
from meltr.data.sampling import middles
from meltr.errors import UserError
from meltr.plugins import discover
from meltr.specs import RunSpec
from meltr.text.vocabulary import VOCABULARY
from meltr.text.wordpiece import Tokenizer, write_vocabulary
from meltr_allinone.data import build_data
from meltr_allinone.options import AllInOneOptions
from meltr_allinone.texts import Texts

SHARED = Path(os.environ.get("MELTR_SHARED", Path(__file__).resolve().parents[4] / "shared"))
SIZES = {"train": 10, "validation": 4, "test": 6}
S, R = 48, 57
"""Side of a frame, and before it is cropped: int(1.2 S)."""

SMALL = {"frames": 2, "image_size": S, "text_length": 24, "sampling": "uniform", "augmentation": "none"}

Make = Callable[..., RunContext]
Sample = Callable[[str], Path]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def sample(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Sample:
    """Return a maker of miniatures of a few clips, in a cache that ``--sample`` uses."""
    monkeypatch.setenv("MELTR_CACHE", str(cache))

    def make(dataset: str) -> Path:
        folder = cache / "miniature" / f"{dataset}-0-v{miniature.VERSION}"
        if not folder.exists():
            splits = ("train", "test") if dataset.startswith("msrvtt-") else SIZES
            miniature.write(dataset, folder, sizes={split: SIZES[split] for split in splits})
        return folder

    return make


@pytest.fixture
def make_context(sample: Sample) -> Make:
    """Return a maker of what core tells the adapter of a small run; without `data_root` on a miniature."""

    def make(
        task: str = "retrieval",
        dataset: str = "msrvtt-7k",
        *,
        data_root: Path | None = None,
        run_dir: Path | None = None,
        losses: tuple[str, ...] = ("vtm", "mlm"),
        settings: dict[str, dict[str, Any]] | None = None,
        **options: Any,
    ) -> RunContext:
        if data_root is None:
            sample(dataset)
        spec = RunSpec(
            backbone="allinone",
            task=task,
            dataset=dataset,
            losses=losses,
            data_root=data_root,
            sample=data_root is None,
            **{"train": {"batch_size": 4}} | (settings or {}),
        )
        return RunContext(
            spec=spec,
            task=discover().task(task),
            options=AllInOneOptions(**SMALL | options),
            device=torch.device("cpu"),
            losses=losses,
            run_dir=run_dir,
        )

    return make


ALL = {"data": {"validation": 0}, "train": {"batch_size": 1}}
"""Settings with which an epoch holds every training example."""


def epoch(data: Data, number: int = 0, start: int = 0) -> dict[str, Tensor]:
    """Return an epoch of training in one."""
    batches = list(data.train.batches(number, start))
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def by_hand(file: Path, indices: list[int]) -> np.ndarray:
    """Return frames resized to R x R and cropped in the middle, (T, 3, S, S)."""
    pictures = []
    for frame in decode(file, lambda total: indices).frames:
        resized = Image.fromarray(frame).resize((R, R), Image.Resampling.BILINEAR)
        edge = round((R - S) / 2)
        pictures.append(np.asarray(resized)[edge : edge + S, edge : edge + S].transpose(2, 0, 1))
    return np.stack(pictures)


def frames_in(file: Path) -> int:
    return decode(file, lambda total: [0]).total


def owner(corpus: Any, count: int = 2) -> dict[bytes, str]:
    """Return pixels of the middle frames of every segment -> key of the video."""
    return {by_hand(path, list(middles(frames_in(path), count))).tobytes(): key for key, path in corpus.media.items()}


def owners(rows: Tensor, known: dict[bytes, str]) -> list[str]:
    return [known[row.contiguous().numpy().tobytes()] for row in rows]


def write_manifest(folder: Path, clips: list[Path], rows: list[dict[str, Any]]) -> Path:
    """Write a manifest whose i-th line is about the i-th clip, which is copied beside it."""
    folder.mkdir(exist_ok=True)
    lines = []
    for clip, row in zip(clips, rows, strict=True):
        shutil.copy(clip, folder)
        lines.append(json.dumps({"video": clip.name, **row}) + "\n")
    (folder / "manifest.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture
def clips(sample: Sample) -> list[Path]:
    return sorted((sample("msrvtt-7k") / "videos" / "all").iterdir())


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    write_vocabulary(tmp_path / "vocabulary.txt", ["is it there? a red ball"])
    return tmp_path / "vocabulary.txt"


# What a batch holds


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


# Frames that are drawn


@pytest.mark.parametrize("stored", [None, 5])
@pytest.mark.parametrize("sampling", ["random", "released"])
def test_every_visit_draws_one_frame_of_each_segment(stored, sampling, make_context, sample):
    data = build_data(make_context(sampling=sampling, stored_frames=stored, settings=ALL))
    corpus = read("msrvtt-7k", "retrieval", sample("msrvtt-7k"))
    places: dict[bytes, tuple[str, int]] = {}
    for key, path in corpus.media.items():
        total = frames_in(path)
        numbers = list(range(total)) if stored is None else list(middles(total, stored))
        for place, picture in enumerate(by_hand(path, numbers)):
            places.setdefault(picture.tobytes(), (key, place))
    pool = {key: stored or frames_in(path) for key, path in corpus.media.items()}
    drawn: dict[str, set[tuple[int, ...]]] = {}
    for number in range(6):
        for clip in epoch(data, number)["video"]:
            found = [places[frame.contiguous().numpy().tobytes()] for frame in clip]
            (key,) = {name for name, _ in found}
            first, second = (place for _, place in found)
            half = pool[key] // 2
            spared = 1 if sampling == "released" else 0
            assert 0 <= first < half - (spared if half > 1 else 0)
            assert half <= second < pool[key] - spared
            drawn.setdefault(key, set()).add((first, second))
    assert len(drawn) == SIZES["train"]
    assert sum(map(len, drawn.values())) > 1.5 * len(drawn)


DRAWING = {"sampling": "random", "augmentation": "crop", "false_videos": "dataset", "false_texts": 3}


def test_an_epoch_is_a_function_of_seed_and_number(make_context):
    """Wherever it is entered, whatever was drawn before, and with other processes reading."""

    def data(**options: Any) -> Data:
        return build_data(make_context(losses=("vtm", "rank"), **DRAWING, **options))

    first = data()
    expected = epoch(first, 1)
    epoch(first, 0)
    random.seed(99)
    torch.manual_seed(99)
    assert same(epoch(first, 1), expected)
    assert same(epoch(first, 1, start=1), {name: column[4:] for name, column in expected.items()})
    assert same(epoch(data(workers=1), 1), expected)
    assert not same(epoch(first, 2), expected)


def test_a_crop_moves_from_visit_to_visit(make_context, sample):
    data = build_data(make_context(augmentation="crop", settings=ALL))
    corpus = read("msrvtt-7k", "retrieval", sample("msrvtt-7k"))
    whole = {}
    for item in corpus.splits["train"]:
        path = corpus.media[item.media]
        pictures = decode(path, lambda total: middles(total, 2)).frames
        resized = [Image.fromarray(frame).resize((R, R), Image.Resampling.BILINEAR) for frame in pictures]
        whole[item.media] = np.stack([np.asarray(frame).transpose(2, 0, 1) for frame in resized])
    crops = {
        video[..., top : top + S, left : left + S].tobytes(): (top, left)
        for video in whole.values()
        for top in range(R - S + 1)
        for left in range(R - S + 1)
    }
    found = Counter(crops[clip.contiguous().numpy().tobytes()] for n in range(3) for clip in epoch(data, n)["video"])
    assert len(found) > 15


# Wrong items


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


# Evaluation


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


# Splits


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
    build_data(make_context("retrieval", "manifest", data_root=root, size="mini", run_dir=tmp_path / "run"))
    assert {"zorilla", "runs", "sleeps"} <= set((tmp_path / "run" / VOCABULARY).read_text().splitlines())


# Frame caches


def test_a_frame_cache_takes_the_place_of_decoding(make_context, sample, vocabulary, tmp_path):
    root = sample("msrvtt-7k")
    media = read("msrvtt-7k", "retrieval", root).media
    fill_cache(media, tmp_path / "cache", CacheSettings(2, sampler="middles", size=None, quality=None))
    given = {"data_root": root, "vocabulary": vocabulary, "workers": 0}
    context = make_context(frame_cache=tmp_path / "cache", **given)
    assert same(epoch(build_data(context)), epoch(build_data(make_context(**given))))
    assert not any("same ones" in note for note in context.notes)
    context = make_context(frame_cache=tmp_path / "cache", **given, sampling="random")
    build_data(context)
    assert any("holds 2 frames a video" in note and "--frames" in note for note in context.notes)


def test_frames_are_drawn_from_a_larger_cache(make_context, sample, vocabulary, tmp_path):
    root = sample("msrvtt-7k")
    media = read("msrvtt-7k", "retrieval", root).media
    fill_cache(media, tmp_path / "cache", CacheSettings(5, sampler="middles", size=None, quality=None))
    given = {"data_root": root, "vocabulary": vocabulary, "workers": 0, "sampling": "random"}
    cached = build_data(make_context(frame_cache=tmp_path / "cache", **given))
    stored = build_data(make_context(stored_frames=5, **given))
    assert same(epoch(cached), epoch(stored))
    both = build_data(make_context(frame_cache=tmp_path / "cache", stored_frames=5, **given))
    assert same(epoch(both), epoch(stored))


def test_a_damaged_video_is_named_or_left_out_by_the_cache(make_context, clips, vocabulary, tmp_path):
    rows = [{"split": split, "captions": ["a red ball"]} for split in [*["train"] * 5, "test"]]
    root = write_manifest(tmp_path / "data", clips[:6], rows)
    broken = root / clips[2].name
    broken.write_bytes(broken.read_bytes()[:900])
    given = {"data_root": root, "vocabulary": vocabulary, "workers": 0, "settings": ALL}
    with pytest.raises(UserError, match=clips[2].name):
        epoch(build_data(make_context("retrieval", "manifest", **given)))
    fill_cache(read("manifest", "retrieval", root).media, tmp_path / "cache", CacheSettings(2))
    context = make_context("retrieval", "manifest", frame_cache=tmp_path / "cache", **given)
    data = build_data(context)
    assert data.meta["splits"] == {"train": 4, "test": 1}
    assert any("could not be decoded" in note and clips[2].name in note for note in context.notes)
    assert len(epoch(data)["video"]) == 4


def test_pictures_are_videos_of_one_frame(make_context, vocabulary, tmp_path):
    (tmp_path / "data").mkdir()
    lines = []
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / f"{number}.png")
        lines.append({"image": f"{number}.png", "split": "train", "captions": ["a red ball", "is it there?"]})
    (tmp_path / "data" / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = {"data_root": tmp_path / "data", "vocabulary": vocabulary, "workers": 0, "settings": ALL}
    rows = epoch(build_data(make_context("retrieval", "manifest", **given, frames=3, sampling="released")))
    assert torch.equal(rows["video"], rows["video"][:, :1].expand_as(rows["video"]))
    assert len({video.numpy().tobytes() for video in rows["video"]}) == 4


# What does not fit


def test_an_answer_outside_the_vocabulary_has_no_class(vocabulary, make_context, clips, tmp_path):
    asked = [("train", "no"), ("train", "yes"), ("test", "perhaps"), ("test", "no")]
    rows = [{"split": split, "question": "is it there?", "answer": answer} for split, answer in asked]
    root = write_manifest(tmp_path / "data", clips[:4], rows)
    data = build_data(make_context("qa", "manifest", data_root=root, vocabulary=vocabulary, workers=0, settings=ALL))
    assert [int(example["answer"]) for example in data.test.clips()] == [-100, 0]


def test_questions_with_choices_are_refused(vocabulary, make_context, clips, tmp_path):
    row = {"split": "train", "question": "is it there?", "answer": "yes", "choices": ["yes", "no"]}
    root = write_manifest(tmp_path / "data", clips[:2], [row, row])
    with pytest.raises(UserError, match="come with choices") as caught:
        build_data(make_context("qa", "manifest", data_root=root, vocabulary=vocabulary))
    assert "Leave `choices` out" in str(caught.value.hint)


def test_long_texts_are_cut_with_a_note(make_context):
    context = make_context(text_length=6)
    rows = epoch(build_data(context))
    assert any("have more than 4 words and are cut" in note and "text_length" in note for note in context.notes)
    assert rows["ids"].shape[1] == 6
    assert set(rows["ids"][:, 0].tolist()) == {101}
    context = make_context(text_length=40)
    build_data(context)
    assert not any("are cut" in note for note in context.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 100}, "image_size=100 is not a multiple of 16"),
        ({"frames": 4, "stored_frames": 3}, "stored_frames=3 is less than frames=4"),
        ({"retrieval_views": 3}, "retrieval_views=3 are the same clip with eval_sampling=uniform"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValidationError, match=message):
        AllInOneOptions(**options)


def test_the_texts_of_the_published_vocabulary():
    """Lower-case, framed and padded to 40 tokens, or cut; rare words in pieces."""
    file = SHARED / "data" / "violet_samples" / "bert-base-uncased-vocab.txt"
    if not file.is_file():
        pytest.skip(f"no vocabulary {file} (set MELTR_SHARED)")
    texts = Texts(Tokenizer(file, length=40), "retrieval", {})
    assert texts.tokenizer.size == 30522
    names = file.read_text(encoding="utf-8").splitlines()
    tokens = [names[number] for number in texts.ids("Hello, my dog is CUTE").tolist()]
    assert tokens == ["[CLS]", "hello", ",", "my", "dog", "is", "cute", "[SEP]", *["[PAD]"] * 32]
    long = texts.ids("a man " * 60)
    assert long.shape == (40,)
    assert int(long[-1]) == 102
    words = texts.ids("embeddings")
    assert [names[number] for number in words[1:5].tolist()] == ["em", "##bed", "##ding", "##s"]
    assert texts.continues(words)[:6].tolist() == [False, False, True, True, True, False]


def test_the_real_clips(make_context, tmp_path):
    """Ten clips of MSR-VTT with their captions, as a manifest: train, validation and test."""
    folder = SHARED / "data" / "captioned_clips"
    file = SHARED / "data" / "violet_samples" / "bert-base-uncased-vocab.txt"
    if not (folder / "index.jsonl").is_file() or not file.is_file():
        pytest.skip(f"no clips in {folder} (set MELTR_SHARED)")
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
    assert [len(data.test.clips()), len(data.validation.clips())] == [2, 2]
