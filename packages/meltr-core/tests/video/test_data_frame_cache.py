"""The frame cache: what is read is what was decoded, and no kill, crash or broken file does harm."""

from __future__ import annotations

import json
import pickle
import random
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from dying import encode_or_die
from meltr.errors import UserError
from meltr.video.corpus import Corpus, Item
from meltr.video.frame_cache import CachedFrames, CacheSettings, fill_cache, without_failed, writer
from meltr.video.frames.media import DecodedMedia
from meltr.video.frames.source import FrameSource
from video_files import numbers_of, write_video

pytest.importorskip("av")
Image = pytest.importorskip("PIL.Image")

RAW = CacheSettings(frames=4, size=None, quality=None)


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> dict[str, Path]:
    """Eleven videos of 1 to 31 frames; the frames of video k show 50 k, 50 k + 1, ..."""
    folder = tmp_path_factory.mktemp("videos")
    lengths = {f"video{k:02}": 1 + 3 * k for k in range(11)}
    return {
        key: write_video(folder / f"{key}.mp4", length, first=50 * k, options={"preset": "ultrafast"})
        for k, (key, length) in enumerate(lengths.items())
    }


@pytest.fixture
def broken(tmp_path) -> dict[str, Path]:
    page = tmp_path / "page.mp4"
    page.write_text("<html>not found</html>")
    return {"video05a": page, "video99": tmp_path / "nowhere.mp4"}


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.startswith(".")}


def test_raw_pixels_are_those_of_the_decoder(media, tmp_path):
    report = fill_cache(media, tmp_path / "cache", RAW, shard_size=4)
    assert (report.total, report.added, report.failed) == (11, 11, {})
    cache, decoder = CachedFrames(tmp_path / "cache"), DecodedMedia(media, 4)
    assert isinstance(cache, FrameSource)
    assert len(cache) == 11
    for key in media:
        np.testing.assert_array_equal(cache.frames(key), decoder.frames(key))


def test_jpeg_frames_are_small_and_nearly_the_same(media, tmp_path):
    fill_cache(media, tmp_path / "jpeg", CacheSettings(frames=4, size=24))
    fill_cache(media, tmp_path / "raw", RAW)
    jpeg, raw = CachedFrames(tmp_path / "jpeg"), CachedFrames(tmp_path / "raw")
    for key in media:
        frames = jpeg.frames(key)
        assert frames.shape == (4, 24, 40, 3)
        assert numbers_of(frames) == numbers_of(raw.frames(key))
        smaller = [np.asarray(Image.fromarray(frame).resize((40, 24), 2)) for frame in raw.frames(key)]
        assert np.abs(frames.astype(int) - np.stack(smaller)).mean() < 4


def test_a_frame_that_repeats_is_stored_once(media, tmp_path):
    fill_cache({"video00": media["video00"]}, tmp_path / "cache", RAW)
    assert (tmp_path / "cache" / "shard-00000.bin").stat().st_size == 48 * 80 * 3
    assert numbers_of(CachedFrames(tmp_path / "cache").frames("video00")) == [0, 0, 0, 0]


def test_processes_and_shards_do_not_change_the_frames(media, tmp_path, broken):
    videos = {**media, **broken}
    one = fill_cache(videos, tmp_path / "one", RAW, shard_size=4)
    two = fill_cache(videos, tmp_path / "two", RAW, shard_size=4, workers=2)
    assert one == two
    assert content(tmp_path / "one") == content(tmp_path / "two")


CHILD = """
import json, sys
from pathlib import Path
from meltr.video.frame_cache import CacheSettings, fill_cache

if __name__ == "__main__":
    media = {key: Path(path) for key, path in json.loads(sys.argv[1]).items()}
    settings = CacheSettings(frames=4, size=None, quality=None)
    def tell(done, total, failed):
        print(done, flush=True)
    fill_cache(media, Path(sys.argv[2]), settings, workers=int(sys.argv[3]), shard_size=2, progress=tell)
"""


@pytest.mark.parametrize(("kill_after", "workers"), [(0, 0), (4, 0), (9, 0), (5, 2)])
def test_a_killed_process_loses_no_finished_shard(media, tmp_path, broken, kill_after, workers):
    """Killed for good after some videos; the second call ends with the files of a call that was never killed."""
    videos = {**media, **broken}
    fill_cache(videos, tmp_path / "whole", RAW, shard_size=2)
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    words = json.dumps({key: str(path) for key, path in videos.items()}), str(tmp_path / "cut"), str(workers)
    child = subprocess.Popen([sys.executable, str(script), *words], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) == kill_after:
            child.kill()
            break
    # The output ends when all processes that could write to it are gone, the workers too.
    child.communicate(timeout=30)
    assert child.returncode == -signal.SIGKILL
    finished = CachedFrames(tmp_path / "cut")
    assert kill_after - 2 <= len(finished) < len(media)
    for key in list(media)[: len(finished)]:
        np.testing.assert_array_equal(finished.frames(key), CachedFrames(tmp_path / "whole").frames(key))
    kept = len(finished)
    report = fill_cache(videos, tmp_path / "cut", RAW, shard_size=2)
    assert report.added == len(media) - kept
    assert sorted(report.failed) == sorted(broken)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_what_a_kill_between_two_files_leaves_is_not_read(media, tmp_path):
    """A shard without its index, half an index, half a shard and half a header."""
    fill_cache(media, tmp_path / "whole", RAW, shard_size=4)
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / ".cache.json.partial").write_text('{"form')
    some = {key: media[key] for key in sorted(media)[:4]}
    fill_cache(some, cut, RAW, shard_size=4)
    (cut / "shard-00001.bin").write_bytes(b"from a shard whose index was not written")
    (cut / ".shard-00001.json.partial").write_text('{"bytes": 12')
    (cut / ".shard.partial").write_bytes(b"half a picture")
    assert len(CachedFrames(cut)) == 4
    fill_cache(media, cut, RAW, shard_size=4)
    assert content(cut) == content(tmp_path / "whole")


def test_a_decoder_that_crashes_costs_one_video(media, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "_encode", encode_or_die)
    bomb = tmp_path / "bomb.mp4"
    bomb.write_bytes(media["video03"].read_bytes())
    some = {key: media[key] for key in list(media)[:4]}
    report = fill_cache({"video01x": bomb, **some}, tmp_path / "cache", RAW, workers=1)
    assert report.failed == {"video01x": f"{bomb} crashes the decoder or exhausts the memory"}
    assert set(some) == {key for key in media if key in CachedFrames(tmp_path / "cache")}


def test_files_that_cannot_be_decoded_are_listed_and_tried_again(media, tmp_path, broken):
    seen = []
    cache = tmp_path / "cache"
    report = fill_cache({**media, **broken}, cache, RAW, progress=lambda *numbers: seen.append(numbers))
    assert seen[0] == (0, 13, 0)
    assert seen[-1] == (13, 13, 2)
    assert [done for done, _, _ in seen] == list(range(14))
    rows = [json.loads(line) for line in (cache / "failed.jsonl").read_text().splitlines()]
    assert {row["key"]: row["reason"] for row in rows} == dict(report.failed) == CachedFrames(cache).failed
    assert "neither a video nor an image" in report.failed["video05a"]
    assert "No such file" in report.failed["video99"]
    with pytest.raises(UserError, match=r"video99 is not in the cache .*: .*No such file"):
        CachedFrames(cache).frames("video99")
    with pytest.raises(KeyError, match="other"):
        CachedFrames(cache).frames("other")
    broken["video05a"].write_bytes(media["video02"].read_bytes())
    again = fill_cache({**media, **broken}, cache, RAW)
    assert (again.added, list(again.failed)) == (1, ["video99"])
    assert numbers_of(CachedFrames(cache).frames("video05a")) == numbers_of(CachedFrames(cache).frames("video02"))


def test_a_cache_that_is_complete_is_left_alone(media, tmp_path):
    fill_cache(media, tmp_path / "cache", RAW)
    before = content(tmp_path / "cache")
    assert fill_cache(media, tmp_path / "cache", RAW).added == 0
    assert content(tmp_path / "cache") == before


def test_videos_of_a_second_data_set_are_added(media, tmp_path, broken):
    keys = sorted(media)
    cache = tmp_path / "cache"
    fill_cache({**{key: media[key] for key in keys[:7]}, "video99": broken["video99"]}, cache, RAW)
    report = fill_cache({key: media[key] for key in keys[4:]}, cache, RAW)
    assert (report.total, report.added, report.failed) == (7, 4, {})
    assert len(CachedFrames(cache, media=media)) == 11
    assert list(CachedFrames(cache).failed) == ["video99"]


def test_nothing_that_can_be_decoded_is_an_error(broken, tmp_path):
    with pytest.raises(UserError, match=r"None of the 2 videos can be decoded\. The first, video05a: "):
        fill_cache(broken, tmp_path / "cache", RAW)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"frames": 5}, "but 5 frames per video (centres)"),
        ({"sampler": "middles"}, "but 4 frames per video (middles)"),
        ({"size": 64}, "short side 64"),
        ({"quality": 75}, "JPEG quality 75"),
    ],
)
def test_other_settings_are_refused(media, tmp_path, changes, found):
    fill_cache({"video01": media["video01"]}, tmp_path / "cache", RAW)
    before = content(tmp_path / "cache")
    with pytest.raises(UserError) as error:
        fill_cache(media, tmp_path / "cache", CacheSettings(**{**vars(RAW), **changes}))
    assert "holds 4 frames per video (centres), original size, raw pixels" in error.value.message
    assert found in error.value.message
    assert content(tmp_path / "cache") == before


def test_other_files_under_the_same_keys_are_refused(media, tmp_path):
    fill_cache(media, tmp_path / "cache", RAW)
    other = {**media, "video04": media["video05"]}
    for use in (
        lambda: fill_cache(other, tmp_path / "cache", RAW),
        lambda: CachedFrames(tmp_path / "cache", media=other),
    ):
        with pytest.raises(UserError, match="video04") as error:
            use()
        assert str(tmp_path / "cache") in error.value.message


def test_foreign_folders_and_a_second_writer_are_refused(media, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(UserError, match="neither empty nor a frame cache"):
        fill_cache(media, tmp_path / "photos", RAW)
    fill_cache(media, tmp_path / "cache", RAW)
    with (tmp_path / "cache" / ".lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="Another process is filling"):
            fill_cache(media, tmp_path / "cache", RAW)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 0}, "0 frames per video"),
        ({"size": 0}, "pictures of 0 pixels"),
        ({"quality": 96}, "no JPEG quality 96"),
        ({"sampler": "random"}, "'random' cannot fill a cache"),
        ({"sampler": "centre"}, "'centre' cannot fill a cache"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        CacheSettings(**{"frames": 4, **changes})


@pytest.fixture(scope="module")
def sixteen(media, tmp_path_factory) -> Path:
    """A cache with 16 frames of each video, which shows 500 ... 530."""
    folder = tmp_path_factory.mktemp("sixteen")
    fill_cache(
        {"video10": media["video10"]}, folder, CacheSettings(frames=16, size=40, quality=None, sampler="middles")
    )
    return folder


def test_fewer_frames_than_are_stored_can_be_taken(sixteen):
    stored = numbers_of(CachedFrames(sixteen).frames("video10"))
    assert len(set(stored)) == 16
    assert numbers_of(CachedFrames(sixteen, 4).frames("video10")) == stored[1::4]
    assert numbers_of(CachedFrames(sixteen, 3, lambda total, count: (0, 7, 15)).frames("video10")) == [
        stored[index] for index in (0, 7, 15)
    ]
    cache = CachedFrames(sixteen, 4, "random")
    random.seed(1)
    draws = [numbers_of(cache.frames("video10")) for _ in range(40)]
    for segment in range(4):
        assert {draw[segment] for draw in draws} == set(stored[4 * segment : 4 * segment + 4])


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        ({"count": 17}, "holds 16 frames per video .* 17 frames were requested"),
        ({"count": 0}, "0 frames were requested"),
        ({"sampler": "centres"}, "the frames of 'centres' were requested"),
        ({"sampler": "random"}, "the frames of 'random' were requested"),
        ({"size": 41}, "short side 40.* at least 41 pixels were requested"),
        ({"count": 4, "sampler": "centre"}, "no frame sampler 'centre'"),
        ({"media": {"video10": Path("a.mp4"), "b": Path("b.mp4")}}, "lacks 1 of 2 videos: b"),
    ],
)
def test_a_cache_refuses_what_it_cannot_give(sixteen, ask, message):
    with pytest.raises(UserError, match=message) as error:
        CachedFrames(sixteen, **ask)
    assert error.value.hint


def test_a_cache_gives_what_it_has(sixteen):
    assert len(CachedFrames(sixteen, 16, "middles", size=40)) == 1


class Frames(torch.utils.data.Dataset):
    def __init__(self, source, keys):
        self.source, self.keys = source, keys

    def __len__(self):
        return len(self.keys)

    def __getitem__(self, index):
        return torch.from_numpy(self.source.frames(self.keys[index]))


def test_threads_and_processes_read_the_same(media, tmp_path):
    fill_cache(media, tmp_path / "cache", CacheSettings(frames=4, size=24), shard_size=3)
    cache = CachedFrames(tmp_path / "cache")
    expected = {key: cache.frames(key).copy() for key in media}
    cache.frames("video00")[:] = 0  # what comes back is the caller's own
    copy = pickle.loads(pickle.dumps(cache))
    keys = list(media) * 3
    with ThreadPoolExecutor(4) as pool:
        for key, frames in zip(keys, pool.map(copy.frames, keys), strict=True):
            np.testing.assert_array_equal(frames, expected[key])
    loader = torch.utils.data.DataLoader(Frames(cache, keys), batch_size=3, num_workers=2)
    for start, batch in enumerate(loader):
        for key, frames in zip(keys[3 * start : 3 * start + 3], batch, strict=True):
            np.testing.assert_array_equal(frames.numpy(), expected[key])


def damage_header(folder: Path) -> None:
    (folder / "cache.json").write_text("{")


def damage_version(folder: Path) -> None:
    (folder / "cache.json").write_text('{"format": 99}')


def damage_index(folder: Path) -> None:
    (folder / "shard-00000.json").write_text('{"bytes": 705')


def cut_shard(folder: Path) -> None:
    shard = folder / "shard-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-1])


def damage_pictures(folder: Path) -> None:
    shard = folder / "shard-00000.bin"
    shard.write_bytes(b"\0" * shard.stat().st_size)


def remove_header(folder: Path) -> None:
    (folder / "cache.json").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_header, "cache.json is damaged"),
        (damage_version, "of format 99; this meltr reads 1"),
        (damage_index, "shard-00000.json or its shard is damaged"),
        (cut_shard, "shard-00000.bin has .* bytes, not"),
        (damage_pictures, "shard-00000.bin is damaged at byte 0"),
        (remove_header, "is not a frame cache: cache.json: No such file"),
    ],
)
def test_a_damaged_cache_says_so(media, tmp_path, damage, message):
    fill_cache({"video00": media["video00"]}, tmp_path / "cache", CacheSettings(frames=2))
    damage(tmp_path / "cache")
    with pytest.raises(UserError, match=message) as error:
        CachedFrames(tmp_path / "cache").frames("video00")
    assert "meltr data cache" in str(error.value.hint)


def test_examples_of_files_that_failed_are_left_out_with_a_note(media, tmp_path, broken):
    files = {**media, **broken}
    fill_cache(files, tmp_path / "cache", RAW)
    splits = {
        "train": tuple(Item(media=key, id=f"{key}-{n}") for key in sorted(files) for n in range(2)),
        "test": (Item(media="video99", id="a"), Item(media="video01", id="b")),
    }
    corpus = Corpus(dataset="some", task="qa", splits=splits, media=files, notes=("first",))
    rest = without_failed(corpus, CachedFrames(tmp_path / "cache", media=files))
    assert set(rest.media) == set(media)
    assert [item.id for item in rest.splits["test"]] == ["b"]
    assert {item.media for item in rest.splits["train"]} == set(media)
    assert rest.notes[0] == "first"
    assert "2 files could not be decoded (video05a, video99;" in rest.notes[1]
    assert "5 examples are skipped" in rest.notes[1]
    whole = Corpus(dataset="some", task="qa", splits={}, media=media)
    assert without_failed(whole, CachedFrames(tmp_path / "cache")) is whole
