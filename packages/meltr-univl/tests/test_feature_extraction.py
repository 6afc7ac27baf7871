"""Features made of videos: which frames, a folder that is filled once, and files that cannot be decoded."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from meltr.errors import UserError
from meltr.video.frames.media import MediaError
from meltr_univl.features.extraction import Recipe, extract, fill_features
from meltr_univl.features.files import open_features
from meltr_univl.features.grid import Grid
from meltr_univl.features.moments import moments
from meltr_univl.features.reading import read_record

GRID = Recipe("grid")


def write_video(path: Path, *, count: int, rate: int = 8, times: list[int] | None = None) -> Path:
    """Write a video whose frame number i is of the grey 4 i; `times` are milliseconds, otherwise it is steady."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1" if path.suffix == ".mkv" else "mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 4 * number, np.uint8), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def seen(path: Path, rate: float, frames: int) -> list[list[int]]:
    """Return which frames of such a video the clips are made of."""
    clips = moments(path, rate=rate, frames=frames, prepare=lambda picture: picture[:1, :1])
    return [[round(int(frame[0, 0, 0]) / 4) for frame in clip] for clip in clips]


@pytest.mark.parametrize("count", [1, 7, 8, 20])
@pytest.mark.parametrize(("rate", "frames"), [(1, 8), (1, 16), (4, 2), (1, 4), (2, 3)])
def test_a_clip_holds_what_is_seen_at_its_times(tmp_path: Path, count: int, rate: int, frames: int) -> None:
    found = seen(write_video(tmp_path / "a.mkv", count=count), rate, frames)
    ends = [Fraction(number + 1, 8) for number in range(count)]
    shown = []
    for k in range(10_000):
        now = Fraction(k, rate * frames)
        if now >= ends[-1]:
            break
        shown.append(next(number for number, end in enumerate(ends) if now < end))
    shown += [shown[-1]] * (-len(shown) % frames)
    assert [frame for clip in found for frame in clip] == shown
    assert {len(clip) for clip in found} == {frames}


def test_frames_last_as_long_as_their_times_say(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", count=4, rate=10, times=[0, 100, 1000, 1100])
    assert seen(path, 1, 10) == [[0, *[1] * 9], [2, 3, *[3] * 8]]


def test_an_image_is_one_clip(tmp_path: Path) -> None:
    Image.new("RGB", (20, 10), (40, 40, 40)).save(tmp_path / "a.png")
    assert seen(tmp_path / "a.png", 1, 4) == [[10] * 4]
    found = extract(tmp_path / "a.png", Grid())
    np.testing.assert_allclose(found, [[40 / 255] * 36 + [0] * 44], atol=1e-6)


def test_bad_files_are_named(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "a.mkv", count=20)
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "none.mp4").touch()
    cut = tmp_path / "cut.avi"
    cut.write_bytes(write_video(tmp_path / "b.avi", count=20).read_bytes()[:4000])
    for name in ("text.mp4", "none.mp4", "absent.mp4", "cut.avi"):
        with pytest.raises(MediaError, match=name.replace(".", r"\.")):
            extract(tmp_path / name, Grid())
    assert len(extract(whole, Grid())) == 10


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_folder_is_filled_and_not_made_twice(tmp_path: Path, workers: int) -> None:
    names = ("clips/a.mkv", "clips/deep/b.mkv", "c.mkv")
    videos = {name: write_video(tmp_path / name, count=8 * number) for number, name in enumerate(names, 1)}
    folder = tmp_path / "features"
    shown: list[tuple[int, int, int]] = []
    report = fill_features(videos, folder, GRID, workers=workers, progress=lambda *each: shown.append(each))
    assert report == (3, 3, {})
    assert shown == [(done, 3, 0) for done in range(4)]
    source = open_features(folder)
    assert (source.record.extractor, source.record.rate) == ("grid", 4.0)
    for number, name in enumerate(names, 1):
        assert np.array_equal(source.features(name), extract(videos[name], Grid()))
        assert len(source.features(name)) == 4 * number
    (folder / "c.npy").unlink()
    before = (folder / "clips" / "a.npy").stat().st_mtime_ns
    assert fill_features(videos, folder, GRID, workers=0).added == 1
    assert (folder / "clips" / "a.npy").stat().st_mtime_ns == before
    assert not [path for path in folder.rglob("*") if "partial" in path.name]


def test_what_cannot_be_decoded_is_recorded_and_tried_again(tmp_path: Path) -> None:
    videos = {"a.mkv": write_video(tmp_path / "a.mkv", count=8), "b.mkv": tmp_path / "b.mkv"}
    videos["b.mkv"].write_text("no video")
    folder = tmp_path / "features"
    report = fill_features(videos, folder, GRID)
    assert list(report.failed) == ["b.mkv"]
    record = read_record(folder)
    assert record is not None
    assert "b.mkv" in record.failed["b.mkv"]
    write_video(videos["b.mkv"], count=8)
    report = fill_features(videos, folder, GRID)
    assert (report.added, report.failed) == (1, {})
    again = read_record(folder)
    assert again is not None
    assert (again, again.failed) == (record, {})
    for path in videos.values():
        path.write_text("no video")
    with pytest.raises(UserError, match="None of 2 videos can be decoded"):
        fill_features(videos, tmp_path / "others", GRID)


def test_folders_of_something_else_are_left_alone(tmp_path: Path) -> None:
    videos = {"a.mkv": write_video(tmp_path / "a.mkv", count=8)}
    folder = tmp_path / "features"
    folder.mkdir()
    np.save(folder / "x.npy", np.zeros((1, 3)))
    with pytest.raises(UserError, match=r"no features\.json"):
        fill_features(videos, folder, GRID)
    (folder / "features.json").write_text('{"format": 1, "extractor": "s3d", "width": 1024}')
    with pytest.raises(UserError, match=r"holds features of s3d, 1,024 numbers; asked for were grid, 80 numbers"):
        fill_features(videos, folder, GRID)
    assert sorted(path.name for path in folder.iterdir()) == ["features.json", "x.npy"]


def test_two_videos_do_not_share_a_file(tmp_path: Path) -> None:
    videos: dict[str, Any] = {name: write_video(tmp_path / name, count=1) for name in ("a.mkv", "a.avi")}
    with pytest.raises(UserError, match=r"a\.mkv and a\.avi would share"):
        fill_features(videos, tmp_path / "features", GRID)


def test_keys_outside_of_the_folder_stay_inside(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mkv", count=4)
    fill_features({"../other/a.mkv": video}, tmp_path / "data" / "features", GRID)
    assert (tmp_path / "data" / "features" / "a.npy").is_file()
    assert "../other/a.mkv" in open_features(tmp_path / "data" / "features")
