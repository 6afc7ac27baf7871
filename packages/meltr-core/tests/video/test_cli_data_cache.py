"""``meltr data cache``, the group it stands in, and the counter that it shows."""

from __future__ import annotations

import json

import numpy as np
import pytest

from command_line import assert_stopped, call, command_line
from meltr.cli.app import build_app
from meltr.plugins import discover
from meltr.video import miniature
from meltr.video.frame_cache import CachedFrames
from video_files import numbers_of, picture, write_video

pytest.importorskip("av")
Image = pytest.importorskip("PIL.Image")

pytestmark = pytest.mark.usefixtures("no_installed_plugins")


@pytest.fixture
def root(tmp_path):
    """A data set of the user's own: videos and an image, for questions and for classes, not for captions."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number, name in enumerate("abc"):
        write_video(folder / f"{name}.mp4", 24, first=100 * number)
    Image.fromarray(picture(7)).save(folder / "d.png")
    asked = {"question": "which?", "answer": "this"}
    rows = [
        {"split": "train", "video": "a.mp4", "label": "x", **asked},
        {"split": "test", "video": "b.mp4", "label": "x", **asked},
        {"split": "train", "video": "c.mp4", "label": "y", **asked},
        {"split": "test", "image": "d.png", "label": "y", **asked},
    ]
    write_manifest(folder, rows)
    return folder


def write_manifest(folder, rows) -> None:
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def cache(root, out, *options: object):
    return call("data", "cache", "--dataset", "manifest", "--data-root", root, "--out", out, "--workers", 0, *options)


def numbers_in(out) -> dict[str, list[int]]:
    frames = CachedFrames(out)
    return {key: numbers_of(frames.frames(key)) for key in ("a.mp4", "b.mp4", "c.mp4", "d.png") if key in frames}


def test_the_files_of_all_tasks_are_decoded_once(root, tmp_path):
    out = tmp_path / "cache"
    result = cache(root, out, "--frames", 2, "--size", 0)
    assert result.exit_code == 0, result.output
    assert numbers_in(out) == {"a.mp4": [8, 16], "b.mp4": [108, 116], "c.mp4": [208, 216], "d.png": [7, 7]}
    assert result.stdout.startswith(
        f"{out}: 4 videos (4 new), 2 frames per video (centres), original size, JPEG quality 90"
    )
    assert "videos 4/4 (100%)" in result.stderr
    again = cache(root, out, "--frames", 2, "--size", 0)
    assert f"{out}: 4 videos (0 new)" in again.stdout


def test_one_task_and_every_option(root, tmp_path):
    out = tmp_path / "cache"
    options = ["--task", "action", "--frames", 3, "--sampler", "middles", "--size", 24, "--raw"]
    result = cache(root, out, *options, "--json")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert json.loads(result.stdout) == {
        "cache": str(out),
        "settings": {"frames": 3, "sampler": "middles", "size": 24, "quality": None},
        "total": 4,
        "added": 4,
        "failed": {},
    }
    assert numbers_in(out) == {
        "a.mp4": [3, 11, 19],
        "b.mp4": [103, 111, 119],
        "c.mp4": [203, 211, 219],
        "d.png": [7, 7, 7],
    }
    expected = np.asarray(Image.fromarray(picture(7)).resize((40, 24), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(CachedFrames(out).frames("d.png")[0], expected)


def test_broken_files_are_named_and_do_not_stop_the_others(root, tmp_path):
    (root / "b.mp4").write_text("<html>")
    out = tmp_path / "cache"
    result = cache(root, out, "--quiet")
    assert result.exit_code == 0
    assert f"{out}: 3 videos (3 new)" in result.stdout
    assert "warning: 1 of 4 videos could not be decoded and are skipped" in result.stderr
    assert f"(all are listed in {out / 'failed.jsonl'}): b.mp4. The first, b.mp4: " in result.stderr
    assert json.loads((out / "failed.jsonl").read_text())["key"] == "b.mp4"


@pytest.mark.parametrize("options", [[], ["--task", "action"]])
def test_missing_files_are_an_error_unless_allowed(root, tmp_path, options):
    (root / "c.mp4").unlink()
    out = tmp_path / "cache"
    result = cache(root, out, *options)
    assert_stopped(result, "c.mp4")
    assert not out.exists()
    allowed = cache(root, out, *options, "--allow-missing")
    assert (allowed.exit_code, list(numbers_in(out))) == (0, ["a.mp4", "b.mp4", "d.png"])


def test_annotations_for_no_task_say_what_each_lacks(root, tmp_path):
    write_manifest(root, [{"split": "train", "video": "a.mp4"}])
    result = cache(root, tmp_path / "cache")
    assert result.exit_code == 2
    for lacking in ("'captions'", "'question'", "'label'", "--task"):
        assert lacking in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sampler", "random"], "sampler 'random' cannot fill a cache"),
        (["--task", "retrieve"], "no annotations for task 'retrieve'"),
        (["--sample"], "--sample generates its own data, but --data-root was given too"),
        (["--frames", 0], "greater than or equal to 1"),
    ],
)
def test_mistakes_are_answered_before_anything_is_decoded(root, tmp_path, options, message):
    result = cache(root, tmp_path / "cache", *options)
    assert_stopped(result, message)
    assert not (tmp_path / "cache").exists()


def test_an_unknown_data_set_is_answered_with_the_known_ones(tmp_path):
    assert_stopped(call("data", "cache", "--dataset", "msdv", "--out", tmp_path / "cache"), "Did you mean 'msvd'?")


def test_the_miniature_is_cached_in_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("MELTR_CACHE", str(tmp_path / "miniatures"))
    monkeypatch.setattr(miniature, "SIZES", {"train": 3, "validation": 2, "test": 2})
    out = tmp_path / "cache"
    words = ["data", "cache", "--dataset", "msvd", "--sample", "--out", out, "--workers", 1, "--frames", 4, "--json"]
    result = call(*words)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["added"] == len(CachedFrames(out)) == 7


PLUGIN = """
import typer
from meltr import hookimpl
from meltr.cli.data import add_command

def greet():
    "Say hello."
    typer.echo("hello")

@hookimpl
def register_commands(app):
    add_command(app, "NAME", greet)
"""


def test_plugins_add_commands_to_the_group(tmp_path):
    file = tmp_path / "greeting.py"
    file.write_text(PLUGIN.replace("NAME", "greet"))
    assert command_line(file)("data", "greet").stdout == "hello\n"


def test_a_plugin_cannot_take_the_name_of_a_command(tmp_path):
    file = tmp_path / "greeting.py"
    file.write_text(PLUGIN.replace("NAME", "cache"))
    registry = discover([file])
    app = build_app(registry)
    assert "there is already a command `meltr data cache`" in registry.broken[0].cause
    assert "--sampler" in call("data", "cache", "--help", app=app).stdout
