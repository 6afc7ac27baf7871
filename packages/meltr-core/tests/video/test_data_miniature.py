"""Miniature data sets: readable as the real ones, the same for a seed, balanced, written once."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from command_line import assert_stopped, call
from meltr.errors import UserError
from meltr.video import annotations, miniature
from meltr.video.frames.media import decode
from meltr.video.miniature import encoding
from meltr.video.miniature.layouts import ONE_MOVEMENT, REPETITIONS, TWO_PHASES
from meltr.video.miniature.movements import MOVEMENTS, Movement
from meltr.video.miniature.rendering import HEIGHT, RGB, WIDTH, render
from meltr.video.miniature.scenes import COLOURS, PLACES, SHAPES, Scene, Thing, balanced, draw

SMALL = {"train": 8, "test": 3}
WITH_VALIDATION = ("msvd", "msrvtt", "msrvtt-full", "cmu-mosi", "manifest")


def small(dataset: str, folder: Path, seed: int = 0) -> Path:
    return miniature.write(dataset, folder / dataset, seed=seed, sizes=small_sizes(dataset))


def small_sizes(dataset: str) -> dict[str, int]:
    return SMALL | ({"validation": 2} if dataset in WITH_VALIDATION else {})


def every_frame(path: Path) -> np.ndarray:
    return decode(path, range).frames


# What is on disk


@pytest.mark.parametrize("dataset", miniature.DATASETS)
def test_the_readers_of_the_real_data_read_it(dataset, tmp_path):
    root = small(dataset, tmp_path)
    for task in annotations.layout(dataset).tasks:
        if task == "classification":
            continue
        corpus = annotations.read(dataset, task, root)
        clips = Counter()
        for split, items in corpus.splits.items():
            clips[split] = len({item.media for item in items})
        expected = small_sizes(dataset)
        assert clips == expected
        assert len(corpus.media) == sum(expected.values())
        assert not corpus.missing
        for path in corpus.media.values():
            assert every_frame(path).shape[1:] == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.avi", "clip.gif"])
def test_a_file_shows_every_frame_of_its_scene(name, tmp_path):
    scenes = draw(4, ONE_MOVEMENT, np.random.default_rng(0))
    for scene in scenes:
        encoding.write_clips({tmp_path / name: scene})
        found, expected = every_frame(tmp_path / name), render(scene)
        assert found.shape == expected.shape
        assert np.abs(found.astype(int) - expected).mean() < 6
        # Frames in their order: none is nearer to another one's place.
        distance = np.abs(found[:, None].astype(int) - expected[None]).mean(axis=(2, 3, 4))
        assert distance.argmin(axis=1).tolist() == list(range(scene.frames))
    assert (tmp_path / name).read_bytes()[:4] in (b"GIF8", b"RIFF", b"\x00\x00\x00\x20", b"\x00\x00\x00\x1c")


def test_files_are_as_published(tmp_path):
    root = small("msvd", tmp_path)
    rows = json.loads((root / "train_qa.json").read_text())
    assert set(rows[0]) == {"answer", "id", "question", "video_id"}
    name, number = (root / "youtube_mapping.txt").read_text().splitlines()[0].split()
    assert (root / "YouTubeClips" / f"{name}.avi").is_file()
    assert number == f"vid{rows[0]['video_id']}"
    gifs = list((small("tgif-action", tmp_path) / "gifs").iterdir())
    assert all(path.read_bytes().startswith(b"GIF8") for path in gifs)
    header = (tmp_path / "tgif-action" / "Train_action_question.csv").read_text().splitlines()[0]
    assert header.split("\t") == ["gif_name", "question", *(f"a{n}" for n in range(1, 6)), "answer", "vid_id", "key"]


def test_a_seed_gives_the_same_data_and_another_seed_other_data(tmp_path):
    one, again, other = (small("msrvtt-9k", tmp_path / str(n), seed) for n, seed in enumerate((3, 3, 4)))
    content = [(root / "MSRVTT_data.json").read_bytes() for root in (one, again, other)]
    clips = [every_frame(root / "videos" / "all" / "video0.mp4") for root in (one, again, other)]
    assert content[0] == content[1] != content[2]
    assert np.array_equal(clips[0], clips[1])
    assert not np.array_equal(clips[0], clips[2])


# What scenes are drawn


@given(st.integers(0, 1000), st.integers(1, 60), st.sampled_from([ONE_MOVEMENT, REPETITIONS, TWO_PHASES]))
def test_what_is_asked_for_is_drawn_in_equal_numbers(seed, count, movements):
    scenes = draw(count, movements, np.random.default_rng(seed))
    assert len(scenes) == count
    for values, found in (
        (SHAPES, [scene.thing.shape for scene in scenes]),
        (COLOURS, [scene.thing.colour for scene in scenes]),
        (PLACES, [scene.place for scene in scenes]),
        (movements, [scene.movements for scene in scenes]),
        (range(3), [len(scene.still) for scene in scenes]),
    ):
        counts = [found.count(value) for value in values]
        assert max(counts) - min(counts) <= 1
        assert sum(counts) == count


def test_scenes_may_be_drawn_before_chosen_backgrounds():
    scenes = draw(60, ONE_MOVEMENT, np.random.default_rng(0), ("space", "snow"))
    assert [sum(scene.place == place for scene in scenes) for place in ("space", "snow")] == [30, 30]


@given(st.integers(0, 1000))
def test_no_two_scenes_look_alike_and_nothing_in_a_scene_is_confused(seed):
    scenes = draw(96, ONE_MOVEMENT, np.random.default_rng(seed))
    assert len({(scene.thing, scene.movements, scene.place) for scene in scenes}) == 96
    for scene in scenes:
        things = (scene.thing, *scene.still)
        assert len({thing.shape for thing in things}) == len({thing.colour for thing in things}) == len(things)


def test_more_scenes_than_combinations_can_be_drawn():
    assert len(draw(2000, ONE_MOVEMENT[:1], np.random.default_rng(0))) == 2000


@given(st.lists(st.integers(), min_size=1, max_size=6, unique=True), st.integers(0, 30), st.integers(0, 99))
def test_balanced_takes_each_value_as_often(values, count, seed):
    found = balanced(values, count, np.random.default_rng(seed))
    counts = [found.count(value) for value in values]
    assert max(counts) - min(counts) <= 1
    assert sum(counts) == count


# What pictures show


def scene_of(
    *movements: Movement, shape: str = "ball", colour: str = "red", place: str = "space", seed: int = 0
) -> Scene:
    return Scene(Thing(shape, colour), movements, place, (), 16, seed)


def mask(picture: np.ndarray, colour: str) -> np.ndarray:
    return np.abs(picture.astype(int) - np.array(RGB[colour])).max(axis=-1) < 40


@settings(deadline=None)
@given(st.sampled_from(sorted(MOVEMENTS)), st.sampled_from(SHAPES), st.sampled_from(COLOURS), st.integers(0, 99))
def test_the_shape_is_there_in_every_frame(name, shape, colour, seed):
    pictures = render(scene_of(Movement(name), shape=shape, colour=colour, seed=seed))
    visible = [mask(picture, colour).sum() > 50 for picture in pictures]
    assert all(visible) if name != "blink" else not all(visible) and sum(visible) > 3


@pytest.mark.parametrize(("forth", "back"), [("left", "right"), ("rise", "fall"), ("grow", "shrink")])
def test_opposites_show_the_same_pictures_in_reverse(forth, back):
    one, other = render(scene_of(Movement(forth))), render(scene_of(Movement(back)))
    assert np.abs(one.astype(int) - other[::-1]).max() <= 1
    assert np.abs(one.astype(int) - other).mean() > 1


@pytest.mark.parametrize(("name", "axis", "sign"), [("left", 1, -1), ("right", 1, 1), ("rise", 0, -1), ("fall", 0, 1)])
def test_ways_go_where_their_words_say(name, axis, sign):
    pictures = render(scene_of(Movement(name)))
    place = [np.argwhere(mask(picture, "red")).mean(axis=0)[axis] for picture in pictures]
    assert all(step > 0 for step in sign * np.diff(place))


def test_growing_shrinking_and_two_phases():
    sizes = [mask(picture, "red").sum() for picture in render(scene_of(Movement("grow")))]
    assert all(step > 0 for step in np.diff(sizes))
    pictures = render(scene_of(Movement("left"), Movement("shrink")))
    column = np.array([np.argwhere(mask(picture, "red")).mean(axis=0)[1] for picture in pictures])
    size = np.array([mask(picture, "red").sum() for picture in pictures])
    assert (np.diff(column[:8]) < -0.5).all()
    assert (np.abs(np.diff(column[9:])) < 0.5).all()
    assert (np.diff(size[9:]) < 0).all()
    assert np.ptp(size[:8]) < 0.1 * size[0]


def test_things_that_stand_still_are_seen_and_counted():
    for scene in draw(30, ONE_MOVEMENT, np.random.default_rng(1)):
        middle = render(scene)[scene.frames // 2]
        assert all(mask(middle, thing.colour).sum() > 15 for thing in scene.still)


# Where it is written


def test_nothing_is_written_where_something_is(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("precious")
    with pytest.raises(UserError, match="not an empty folder"):
        miniature.write("msvd", tmp_path / "mine" / "file", sizes=SMALL)
    with pytest.raises(UserError, match="not an empty folder"):
        miniature.write("msvd", tmp_path / "mine", sizes=SMALL)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("dataset", "sizes", "message"),
    [
        ("msvdd", {}, "no synthetic sample of 'msvdd'"),
        ("tgif-frame", {"validation": 5}, "no split 'validation'"),
        ("msvd", {"train": 0}, "0 clips for train of msvd are too few"),
        ("kinetics400", {"train": 7}, "7 clips for train of kinetics400 are too few"),
    ],
)
def test_wrong_wishes_are_refused(dataset, sizes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        miniature.write(dataset, tmp_path / "out", sizes=sizes)
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    def fail(scene):
        raise OSError("disk full")

    monkeypatch.setattr(encoding, "render", fail)
    with pytest.raises(OSError, match="disk full"):
        small("msvd", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("module", "dataset"), [("av", "msvd"), ("PIL.Image", "tgif-action")])
def test_a_missing_library_is_named_with_the_command_that_installs_it(module, dataset, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError) as error:
        small(dataset, tmp_path)
    assert "meltr-core[video]" in error.value.hint
    assert not list(tmp_path.iterdir())


def test_the_cache_is_written_once(tmp_path, monkeypatch):
    monkeypatch.setenv("MELTR_CACHE", str(tmp_path))
    monkeypatch.setattr(miniature, "SIZES", {"train": 8, "validation": 1, "test": 1})
    seen = []
    folder = miniature.cached("kinetics400", progress=lambda done, total: seen.append((done, total)))
    assert folder.is_relative_to(tmp_path)
    assert seen == [(done, 9) for done in range(1, 10)]
    assert miniature.cached("kinetics400", seed=1) != folder
    monkeypatch.setattr(miniature, "write", None)
    assert miniature.cached("kinetics400") == folder
    assert len(annotations.read("kinetics400", "action", folder).media) == 9


def test_a_faster_process_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setenv("MELTR_CACHE", str(tmp_path))
    monkeypatch.setattr(miniature, "SIZES", {"train": 8, "validation": 1, "test": 1})
    render_scene = encoding.render

    def overtaken(scene):
        folder = tmp_path / "miniature" / f"kinetics400-0-v{miniature.VERSION}"
        folder.mkdir(exist_ok=True)
        (folder / "train.csv").write_text("theirs")
        return render_scene(scene)

    monkeypatch.setattr(encoding, "render", overtaken)
    folder = miniature.cached("kinetics400")
    assert (folder / "train.csv").read_text() == "theirs"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_the_cache_is_the_users(tmp_path, monkeypatch):
    monkeypatch.delenv("MELTR_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert miniature.cache_folder() == tmp_path / "meltr"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert miniature.cache_folder() == tmp_path / "home" / ".cache" / "meltr"


# The command


def test_the_command_writes_what_the_readers_read(tmp_path):
    command = ["data", "sample", "--dataset", "msrvtt-9k", "--out", str(tmp_path / "out")]
    result = call(*command, "--size", "train=3", "--size", "test=2", "--quiet")
    assert result.exit_code == 0, result.output
    assert "5 clips; examples for retrieval: 3 train, 2 test" in result.stdout
    again = call(*command)
    assert_stopped(again, "not an empty folder")
    wrong = call(*command, "--size", "train")
    assert_stopped(wrong, "--size train=50")
