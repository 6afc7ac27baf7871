"""Features from folders, pickles and archives, what is wrong with them, and the part that a model sees."""

from __future__ import annotations

import json
import pickle
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meltr.errors import UserError
from meltr_univl.features.files import open_features
from meltr_univl.features.reading import (
    FeatureRecord,
    Features,
    FeatureSource,
    checked,
    read_record,
    require,
    window,
    write_record,
)

VIDEOS = {"a": 5, "b": 0, "clips/c": 3, "clips/deep/d": 1}
"""Key -> vectors."""


def vectors(count: int, width: int = 4, *, dtype: Any = np.float64) -> Any:
    return np.arange(count * width, dtype=dtype).reshape(count, width)


def write_folder(folder: Path, record: FeatureRecord | None = None) -> Path:
    for key, count in VIDEOS.items():
        file = folder / f"{key}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, vectors(count))
    if record is not None:
        write_record(folder, record)
    return folder


def write_pickle(path: Path, content: Any | None = None, protocol: int = 4) -> Path:
    if content is None:
        content = {key: vectors(count * 20, 8) for key, count in VIDEOS.items()}
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def write_archive(path: Path) -> Path:
    np.savez(path, **{key: vectors(count) for key, count in VIDEOS.items()})
    return path


def read_c(source: FeatureSource) -> Features:
    return source.features("clips/c")


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickles_hold_the_arrays_as_they_are(tmp_path: Path, protocol: int) -> None:
    source = open_features(write_pickle(tmp_path / "x_videos_features.pickle", protocol=protocol))
    assert source.record.width == 8
    for key, count in VIDEOS.items():
        found = source.features(key)
        assert found.dtype == np.float32
        assert np.array_equal(found, vectors(count * 20, 8))
    assert "e" not in source
    with pytest.raises(KeyError):
        source.features("e")


def test_a_source_goes_to_other_processes(tmp_path: Path) -> None:
    sources = [
        open_features(write_pickle(tmp_path / "x.pickle")),
        open_features(write_folder(tmp_path / "folder")),
        open_features(write_archive(tmp_path / "x.npz")),
    ]
    here = [read_c(source) for source in sources]  # opens files, which cannot be sent
    assert [found.shape for found in here] == [(60, 8), (3, 4), (3, 4)]
    with get_context("fork").Pool(1) as pool:
        there = pool.map(read_c, sources)
    assert all(np.array_equal(*pair) for pair in zip(here, there, strict=True))


@pytest.mark.parametrize("make", [lambda path: write_folder(path / "f"), lambda path: write_archive(path / "f.npz")])
def test_keys_may_have_the_ending_of_their_video(tmp_path: Path, make: Any) -> None:
    source = open_features(make(tmp_path))
    assert isinstance(source, FeatureSource)
    for key, count in VIDEOS.items():
        assert np.array_equal(source.features(f"{key}.mp4"), vectors(count))
        assert key in source
    assert "a.xyz" not in source
    assert source.features("b").shape == (0, 4)


def test_a_folder_finds_names_at_any_depth_but_does_not_guess(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    source = open_features(folder)
    assert np.array_equal(source.features("d"), vectors(1))
    assert np.array_equal(source.features("videos/d.mp4"), vectors(1))
    (folder / "other").mkdir()
    np.save(folder / "other" / "d.npy", vectors(2))
    again = open_features(folder)
    assert np.array_equal(again.features("other/d.webm"), vectors(2))
    with pytest.raises(UserError, match=r"2 videos that may be 'd': clips/deep/d, other/d"):
        again.features("d")


def test_how_features_were_made_stays_with_them(tmp_path: Path) -> None:
    record = FeatureRecord(4, "s3d-howto100m", 1.0, "ab" * 32, {"x": "is damaged"})
    folder = write_folder(tmp_path, record)
    assert read_record(folder) == record
    source = open_features(folder, extractor="other", rate=3)
    assert source.record == record
    require(source, width=4, extractor="s3d-howto100m")
    with pytest.raises(UserError, match=r"features of dimension 4 \(s3d-howto100m.*the model takes 1,024"):
        require(source, width=1024)
    with pytest.raises(UserError, match="features of s3d-howto100m; the model was trained with those of grid"):
        require(source, extractor="grid")
    require(source, weights="ab" * 32)
    with pytest.raises(UserError, match=r"weights abababababab.*others, of weights cdcdcdcdcdcd"):
        require(source, weights="cd" * 32)
    silent = open_features(write_archive(tmp_path / "x.npz"))
    require(silent, extractor="grid")
    assert open_features(tmp_path / "x.npz", extractor="other", rate=3).record == FeatureRecord(4, "other", 3)


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"format": 2, "width": 4}', '{"format": 1}', '{"format": 1, "width": 4, "rate": 0}', '{"width": 4}'],
)
def test_a_damaged_record_is_refused(tmp_path: Path, content: str) -> None:
    folder = write_folder(tmp_path)
    (folder / "features.json").write_text(content)
    with pytest.raises(UserError, match=r"features\.json is damaged"):
        open_features(folder)


@pytest.mark.parametrize(
    ("array", "problem"),
    [
        (vectors(3, 5), "holds features of dimension 5; the others have 4"),
        (np.zeros(4), r"shape \(4,\)"),
        (np.zeros((2, 3, 4)), r"shape \(2, 3, 4\)"),
        (np.array([["a", "b"]]), "instead of numbers"),
        (np.where(np.eye(4) > 0, np.nan, 0)[1:], "NaN or infinite numbers in 3 of 3 frames, first in frame 0"),
        (np.array([[0.0] * 4, [0, 0, np.inf, 0]]), "in 1 of 2 frames, first in frame 1"),
    ],
)
def test_wrong_features_are_named(tmp_path: Path, array: Any, problem: str) -> None:
    folder = write_folder(tmp_path)
    np.save(folder / "z.npy", array)
    with pytest.raises(UserError, match=rf"z\.npy.*{problem}"):
        open_features(folder).features("z")


def test_numbers_beyond_float32_are_not_finite() -> None:
    with pytest.raises(UserError, match="NaN or infinite"), np.errstate(over="ignore"):
        checked(np.full((1, 2), 1e300), "x", 2)


def test_truncated_files_are_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder")
    whole = (folder / "a.npy").read_bytes()
    source = open_features(folder)
    for part in (b"", whole[:40], whole[:-8]):
        (folder / "a.npy").write_bytes(part)
        with pytest.raises(UserError, match=r"a\.npy is truncated or corrupt"):
            source.features("a")
    for write, name in ((write_pickle, "x.pickle"), (write_archive, "x.npz")):
        path = write(tmp_path / name)
        path.write_bytes(path.read_bytes()[:-30])
        with pytest.raises(UserError, match=rf"{name} is truncated or corrupt"):
            open_features(path)


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There are no features"):
        open_features(tmp_path / "absent")
    with pytest.raises(UserError, match=r"holds no \.npy file"):
        open_features(tmp_path)
    (tmp_path / "x.txt").touch()
    with pytest.raises(UserError, match=r"ends in '\.txt'"):
        open_features(tmp_path / "x.txt")
    np.savez(tmp_path / "x.npz")
    with pytest.raises(UserError, match="holds no arrays"):
        open_features(tmp_path / "x.npz")


@pytest.mark.parametrize("content", [[1], {}, {"a": "text"}, {"a": vectors(1), "b": [1.0]}, {"a": np.zeros(3)}])
def test_pickles_of_something_else(tmp_path: Path, content: Any) -> None:
    with pytest.raises(UserError, match=r"x\.pickle holds"):
        open_features(write_pickle(tmp_path / "x.pickle", content))


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "touched",)

    path = write_pickle(tmp_path / "x.pickle", {"a": vectors(100), "b": Evil()})
    with pytest.raises(UserError, match="was refused"):
        open_features(path)
    assert not (tmp_path / "touched").exists()


def test_objects_in_npy_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    np.save(folder / "z.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"z\.npy is truncated or corrupt"):
        open_features(folder).features("z")


@given(
    count=st.integers(0, 40),
    length=st.integers(1, 12),
    start=st.floats(0, 30),
    seconds=st.floats(0, 30),
    rate=st.sampled_from([0.5, 1, 2]),
)
def test_a_window_is_the_part_between_start_and_end(
    count: int, length: int, start: float, seconds: float, rate: float
) -> None:
    features = np.arange(count, dtype=np.float32)[:, None]
    span = (start, start + seconds)
    inside = [i for i in range(count) if int(start * rate) <= i <= int((start + seconds) * rate)]
    first = window(features, span=span, rate=rate, length=length)[:, 0].tolist()
    assert first == inside[:length]
    even = window(features, span=span, rate=rate, length=length, pick="even")[:, 0].tolist()
    assert len(even) == len(first)
    assert set(even) <= set(inside)
    assert even == sorted(set(even))
    if len(inside) > length:  # no gap is more than one longer than another, and both ends are as far away
        gaps = np.diff([inside[0] - 1, *even, inside[-1] + 1])
        assert max(gaps[1:-1], default=0) - min(gaps[1:-1], default=0) <= 1
        assert abs(gaps[0] - gaps[-1]) <= 1
    else:
        assert even == inside


def test_the_record_is_valid_json(tmp_path: Path) -> None:
    write_record(tmp_path, FeatureRecord(7, "grid", 4.0, None, {"x.mp4": "is damaged"}))
    assert json.loads((tmp_path / "features.json").read_text()) == {
        "format": 1,
        "extractor": "grid",
        "width": 7,
        "rate": 4.0,
        "weights": None,
        "failed": {"x.mp4": "is damaged"},
    }
