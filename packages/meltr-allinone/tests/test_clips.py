"""Frames of training clips: which are drawn, crops, frame caches, pictures, damaged videos."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from allinone_clips import ALL, DRAWING, R, S, by_hand, epoch, frames_in, same, write_manifest
from meltr.context import Data
from meltr.errors import UserError
from meltr.video.annotations import read
from meltr.video.frame_cache import CacheSettings, fill_cache
from meltr.video.frames.media import decode
from meltr.video.frames.sampling import middles
from meltr_allinone.data import build_data
from meltr_fixtures import SIZES


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
