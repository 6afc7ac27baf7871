"""``meltr data check``: what is there, what is missing, counts; and ``--allow-missing``."""

from __future__ import annotations

import json

import pytest

from annotation_files import write_msrvtt, write_msvd
from command_line import assert_stopped, command_line

PLUGIN = """
from meltr import BackboneInfo, BackboneTask, DatasetInfo, hookimpl

@hookimpl
def register_datasets():
    return [DatasetInfo(name="shapes", summary="", tasks=("qa",), layout="shapes.npz")]

@hookimpl
def register_backbones():
    task = BackboneTask(task="qa", losses=("main", "side"), datasets=("msvd",))
    return [BackboneInfo(name="toy", summary="", adapter="nowhere:Adapter", tasks=(task,))]
"""


@pytest.fixture
def meltr(tmp_path_factory, no_installed_plugins):
    file = tmp_path_factory.mktemp("plugin") / "toy.py"
    file.write_text(PLUGIN)
    return command_line(file)


def lines_of(result) -> list[str]:
    return [" ".join(line.split()) for line in result.stdout.splitlines()]


def test_a_complete_data_set(meltr, tmp_path):
    result = meltr("data", "check", "--dataset", "msvd", "--data-root", write_msvd(tmp_path))
    assert result.exit_code == 0
    lines = lines_of(result)
    assert f"msvd (qa) in {tmp_path}" in lines
    assert "ok train_qa.json training questions" in lines
    assert "all 4 that the annotations name" in lines
    assert "train 4 4 30,933 differs from the published number" in lines
    assert any("1 of 2 in test" in line for line in lines)
    assert lines[-1] == "All files exist."


def test_an_empty_folder(meltr, tmp_path):
    result = meltr("data", "check", "--dataset", "msvd", "--data-root", tmp_path)
    assert result.exit_code == 1
    lines = lines_of(result)
    for name in ("train_qa.json", "val_qa.json", "test_qa.json", "youtube_mapping.txt"):
        assert any(line.startswith(f"MISSING {name}") for line in lines)
    assert f"These belong in {tmp_path}:" in lines
    assert any("--sample" in line for line in lines)
    assert not any("--allow-missing" in line for line in lines)


def test_a_missing_video(meltr, tmp_path):
    write_msvd(tmp_path)
    (tmp_path / "videos" / "-4wsuPCjDBc_5_15.avi").unlink()
    result = meltr("data", "check", "--dataset", "msvd", "--data-root", tmp_path)
    assert result.exit_code == 1
    lines = lines_of(result)
    assert "3 of 4; MISSING 1: -4wsuPCjDBc_5_15" in lines
    assert any(line.startswith(f"They belong in {tmp_path / 'videos'}") for line in lines)
    assert "train 4 2 30,933 differs from the published number" in lines
    assert any("--allow-missing" in line for line in lines)


def test_videos_without_annotations_are_counted(meltr, tmp_path):
    write_msvd(tmp_path)
    (tmp_path / "train_qa.json").unlink()
    result = meltr("data", "check", "--dataset", "msvd", "--data-root", tmp_path)
    assert result.exit_code == 1
    assert any(line.startswith("4 exist;") for line in lines_of(result))


def test_a_malformed_file(meltr, tmp_path):
    write_msvd(tmp_path)
    (tmp_path / "test_qa.json").write_text("[\n{]")
    result = meltr("data", "check", "--dataset", "msvd", "--data-root", tmp_path)
    assert result.exit_code == 1
    assert f"{tmp_path / 'test_qa.json'}, line 2: not valid JSON" in result.stdout


def test_an_empty_split(meltr, tmp_path):
    write_msvd(tmp_path)
    (tmp_path / "val_qa.json").write_text("[]")
    result = meltr("data", "check", "--dataset", "msvd", "--data-root", tmp_path)
    assert result.exit_code == 1
    assert "validation 0 0 6,415 EMPTY" in lines_of(result)


def test_optional_files_and_no_validation_split(meltr, tmp_path):
    result = meltr("data", "check", "--dataset", "msrvtt-9k", "--data-root", write_msrvtt(tmp_path, "clip4clip"))
    assert result.exit_code == 0
    lines = lines_of(result)
    assert any(line.startswith("not there jsfusion_val_caption_idx.pkl") for line in lines)
    assert any(line.startswith("validation none cut from train") for line in lines)


def test_json(meltr, tmp_path):
    write_msvd(tmp_path)
    (tmp_path / "videos" / "-8y1Q0rA3n8_95_102.avi").unlink()
    result = meltr("data", "check", "--dataset", "msvd", "--data-root", tmp_path, "--task", "qa", "--json")
    assert result.exit_code == 1
    content = json.loads(result.stdout)
    assert content["complete"] is False
    assert content["splits"]["test"] == {"items": 2, "usable": 0, "published": 13157}
    assert content["media"] == {"found": 3, "missing": ["-8y1Q0rA3n8_95_102"]}
    assert content["files"][0]["path"] == str(tmp_path / "train_qa.json")


def test_a_manifest(meltr, tmp_path):
    (tmp_path / "manifest.jsonl").write_text('{"split": "train", "video": "a.mp4", "label": "x"}\n')
    (tmp_path / "a.mp4").touch()
    words = ("data", "check", "--dataset", "manifest", "--data-root", tmp_path / "manifest.jsonl")
    result = meltr(*words, "--task", "action")
    assert result.exit_code == 0
    assert "train 1 1" in lines_of(result)
    assert "no 'captions'" in meltr(*words, "--task", "retrieval").stdout


def test_wrong_words(meltr, tmp_path):
    assert_stopped(meltr("data", "check", "--dataset", "msdv", "--data-root", tmp_path), "Did you mean 'msvd'?")
    assert_stopped(meltr("data", "check", "--dataset", "msvd", "--data-root", tmp_path / "nowhere"), "does not exist")
    assert_stopped(meltr("data", "check", "--dataset", "msvd"), "--data-root was not given")
    assert_stopped(meltr("data", "check", "--dataset", "shapes", "--data-root", tmp_path), "shapes.npz")


def test_allow_missing_is_a_setting_and_an_option(meltr):
    words = ("config", "show", "--backbone", "toy", "--task", "qa", "--dataset", "msvd", "--json")
    assert json.loads(meltr(*words).stdout)["data"]["allow_missing"] is False
    assert json.loads(meltr(*words, "--allow-missing").stdout)["data"]["allow_missing"] is True
    assert json.loads(meltr(*words, "--set", "allow_missing=true").stdout)["data"]["allow_missing"] is True
