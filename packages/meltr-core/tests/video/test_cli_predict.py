"""``meltr predict``: from words to rows, every wrong combination, broken files, seeds, contact sheets."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

import meltr.data.processes
from command_line import assert_stopped, call
from meltr.context import PredictRequest
from meltr.engine.predicting import load_run
from meltr.plugins import discover
from meltr.video.cli.predict import _split_choices
from places import ASKING
from video_files import write_video

pytest.importorskip("av")
Image = pytest.importorskip("PIL.Image")


@pytest.fixture(autouse=True)
def _decode_here(monkeypatch):
    """Start no processes, which test_contact_sheet.py does."""
    monkeypatch.setattr(meltr.data.processes, "available_cores", lambda: 0)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory) -> Path:
    """Two seeds of a run."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs")
    words = ["run", "--plugin", ASKING, "--backbone", "asking", "--task", "classification", "--dataset", "rings"]
    words += ["--epochs", 2, "--batch-size", 32, "--lr", 0.01, "--combiner", "sum", "--device", "cpu", "--seed", "3,1"]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RANK", "WORLD_SIZE"):
            patch.delenv(name, raising=False)
        result = call(*words, "--output-dir", folder, "--name", "mine", "--quiet")
    assert result.exit_code == 0, result.output
    return folder / "mine"


@pytest.fixture
def run(seeds) -> Path:
    return seeds / "seed-3"


@pytest.fixture
def clips(tmp_path) -> Path:
    """Four images and a video; names do not tell which is on which ring."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for name, colour in {"a": (128, 190), "b": (255, 128), "c": (70, 120), "d": (10, 100)}.items():
        Image.new("RGB", (40, 30), (*colour, 7)).save(folder / f"{name}.png")
    write_video(folder / "e.mp4", 3)
    return folder


def answers(run: Path, paths: list[Path], **asked: object) -> list[dict[str, object]]:
    rows = load_run(run, registry=discover([ASKING])).predict(PredictRequest(tuple(paths), **asked)).rows
    return [{key: str(value) if isinstance(value, Path) else value for key, value in row.items()} for row in rows]


def test_a_search_ranks_the_files_of_a_folder(run, clips):
    result = call("predict", "--trust", run, "--search", "outer", "--videos", clips, "--top", 3, "--json")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    scores = [row["score"] for row in content["rows"]]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    everything = answers(run, sorted(clips.iterdir()), search="outer")
    assert content["rows"] == everything[:3]
    assert scores[0] > everything[-1]["score"]
    assert (content["run_dir"], content["what"], content["skipped"]) == (str(run), "files on the outer ring", {})
    assert (run / "checkpoints" / content["checkpoint"]).is_dir()


def test_the_table_has_a_line_a_row_and_names_files(run, clips):
    result = call("predict", "--trust", run, "--image", clips / "a.png", "--video", clips / "e.mp4")
    assert result.exit_code == 0, result.output
    first, header, *lines = result.stdout.splitlines()
    assert first.startswith(f"{run}: rings, checkpoint step-")
    assert header.split() == ["video", "ring", "probability", "image"]
    expected = answers(run, [clips / "e.mp4", clips / "a.png"])
    assert len(lines) == len(expected) == 4
    for line, row in zip(lines, expected, strict=True):
        name = Path(str(row.get("video") or row.get("image"))).name
        assert sorted(line.split()) == sorted([name, row["ring"], f"{row['probability']:.4g}"])


def test_a_file_named_twice_is_asked_once(run, clips):
    words = ["--image", clips / "a.png", "--image", clips / "a.png", "--images", clips, "--top", 1, "--json"]
    rows = json.loads(call("predict", "--trust", run, *words).stdout)["rows"]
    assert [Path(row.get("image") or row["video"]).name for row in rows] == [
        "a.png",
        "b.png",
        "c.png",
        "d.png",
        "e.mp4",
    ]


def test_files_that_cannot_be_decoded_are_listed_and_skipped(run, clips):
    (clips / "page.mp4").write_text("<html>")
    result = call("predict", "--trust", run, "--videos", clips, "--top", 1)
    assert result.exit_code == 0, result.output
    assert f"warning: 1 of 6 files in {clips} could not be decoded and are skipped:" in result.stderr
    assert f"{clips / 'page.mp4'} is neither a video nor an image" in result.stderr
    assert len(result.stdout.splitlines()) == 2 + 5
    content = json.loads(call("predict", "--trust", run, "--videos", clips, "--top", 1, "--json").stdout)
    assert list(content["skipped"]) == [str(clips / "page.mp4")]
    for path in clips.iterdir():
        path.write_text("<html>")
    assert_stopped(call("predict", "--trust", run, "--videos", clips), "None of the 6 files can be decoded")


def test_a_broken_file_that_was_named_is_an_error(run, tmp_path):
    page = tmp_path / "page.mp4"
    page.write_text("<html>")
    result = call("predict", "--trust", run, "--video", page)
    assert_stopped(result, f"{page} is neither a video nor an image")
    assert result.stdout == ""


def test_a_contact_sheet_of_what_was_found(run, clips, tmp_path):
    sheet = tmp_path / "found.png"
    (clips / "e.mp4").unlink()
    result = call("predict", "--trust", run, "--search", "inner", "--videos", clips, "--top", 2, "--sheet", sheet)
    assert result.exit_code == 0, result.output
    assert f"contact sheet: {sheet}" in result.stderr
    best = answers(run, sorted(clips.iterdir()), search="inner")[0]
    with Image.open(sheet) as written, Image.open(str(best["image"])) as source:
        colours = {colour: count for count, colour in written.getcolors(1 << 20)}
        assert colours[source.getpixel((0, 0))] == 240 * 180


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        ([], "no video or image was given", "--video FILE"),
        (["--question", "what?"], "--question needs a video", "--video FILE"),
        (["--search", "outer"], "--search needs videos to rank", "--videos DIR"),
        (["--question", "what?", "--search", "outer", "--videos", "clips"], "cannot be combined", "one of them"),
        (["--choices", "yes,no", "--videos", "clips"], "--choices needs a question", "--question"),
        (["--question", " ", "--videos", "clips"], "--question is empty", "Give a text"),
        (["--question", "?", "--choices", "yes", "--videos", "clips"], "two or more different", "yes,no"),
        (["--question", "?", "--choices", "yes,,no", "--videos", "clips"], "two or more different", "yes,no"),
        (["--question", "?", "--choices", "a,a", "--videos", "clips"], "two or more different", "yes,no"),
        (["--video", "gone.mp4"], "--video gone.mp4: there is no such file", "Check"),
        (["--image", "clips"], "--image clips is a folder", "--videos DIR"),
        (["--videos", "gone"], "Cannot read the folder gone", "folder of videos"),
        (["--videos", "."], "holds no videos", "Known extensions"),
        (["--videos", "clips", "--sheet", "found.jpg"], "not the name of a PNG file", "found.png"),
        (["--videos", "clips", "--checkpoint", "bset"], "no checkpoint 'bset'", "best, last"),
        (["--videos", "clips", "--device", "gpu"], "Unknown device 'gpu'", "cpu"),
        (["--videos", "clips", "--question", "what?"], "answers no questions", "Leave --question out"),
        (["--videos", "clips", "--top", "0"], "--top", "1"),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(run, clips, monkeypatch, words, message, hint):
    monkeypatch.chdir(clips.parent)
    result = call("predict", "--trust", run, *words)
    assert_stopped(result, message, hint)
    assert result.stdout == ""
    assert os.listdir(clips.parent) == ["clips"]


def test_choices_are_split_at_commas_outside_quotes():
    assert _split_choices(None) == ()
    assert _split_choices("red, dark blue,green") == ("red", "dark blue", "green")
    assert _split_choices('"red, or so", "no",yes') == ("red, or so", "no", "yes")


def test_of_several_seeds_the_first_that_was_started_is_asked(seeds, clips, tmp_path):
    copy = Path(shutil.copytree(seeds, tmp_path / "copy", symlinks=True))
    for asked in ("seed-3", "seed-1"):
        result = call("predict", "--trust", copy, "--image", clips / "a.png", "--json")
        assert result.exit_code == 0, result.output
        content = json.loads(result.stdout)
        assert content["run_dir"] == str(copy / asked)
        assert content["rows"] == answers(copy / asked, [clips / "a.png"])
        assert f"{asked} is used" in result.stderr
        shutil.rmtree(copy / asked)
    result = call("predict", "--trust", copy, "--image", clips / "a.png")
    assert (result.exit_code, "no seed of" in result.stderr) == (2, True)


def test_no_run(clips):
    assert_stopped(call("predict", "--trust", clips, "--videos", clips), "is not a run folder: it has no run.yaml")


def test_a_plugin_file_that_moved(seeds, clips, tmp_path):
    copy = Path(shutil.copytree(seeds / "seed-3", tmp_path / "run", symlinks=True))
    text = (copy / "run.yaml").read_text()
    (copy / "run.yaml").write_text(text.replace(str(ASKING), str(tmp_path / "gone.py")))
    words = ["predict", "--trust", copy, "--image", clips / "a.png"]
    assert "gone.py: there is no such file" in call(*words).stderr
    assert call(*words, "--plugin", ASKING).exit_code == 0


PLACELESS = """
import meltr
from asking_backbone import Asking, register_datasets


@meltr.hookimpl
def register_backbones():
    task = meltr.BackboneTask(task="classification", losses=("ce", "denoise", "norm"), datasets=("rings",))
    return [meltr.BackboneInfo(name="asking", summary="", adapter=f"{__name__}:Placeless", tasks=(task,))]


class Placeless(Asking):
    @meltr.hookimpl
    def predict(self):
        return meltr.Prediction(({"answer": "a tree", "probability": 0.5},))
"""


def test_without_files_in_the_rows_there_is_an_answer_but_no_sheet(run, clips, tmp_path):
    plugin, sheet = tmp_path / "placeless.py", tmp_path / "sheet.png"
    plugin.write_text(PLACELESS)
    result = call("predict", "--trust", run, "--image", clips / "a.png", "--plugin", plugin, "--sheet", sheet)
    assert result.exit_code == 2
    assert "a tree" in result.stdout
    assert "nothing to draw" in result.stderr
    assert not sheet.exists()


def test_a_run_folder_that_names_a_plugin_file_asks_for_trust(run, clips, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "from-elsewhere", symlinks=True))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    text = (copy / "run.yaml").read_text()
    (copy / "run.yaml").write_text(text.replace(str(ASKING), str(tmp_path / "evil.py")))
    for words in (["predict", copy, "--image", clips / "a.png"], ["evaluate", copy]):
        done = call(*words)
        assert_stopped(done, "names the plugin file", "--trust", "--plugin")
        assert str(tmp_path / "evil.py") in done.stderr.replace("\n", "")
        assert not (tmp_path / "ran").exists()
        assert call(*words, "--plugin", ASKING).exit_code == 0
    call("evaluate", "--trust", copy)
    assert (tmp_path / "ran").exists()
