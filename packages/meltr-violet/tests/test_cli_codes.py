"""``meltr data codes``: published and prepared data, mistakes, and going on."""

from __future__ import annotations

import base64
import io
import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import command_line
from meltr.cli.app import build_app
from meltr_violet import commands
from meltr_violet.data.code_extraction import compute, fingerprint
from meltr_violet.data.code_file import CodeFile
from meltr_violet.data.prepared_frames import PreparedFrames
from meltr_violet.model.dvae import CodeEncoder

pytestmark = pytest.mark.usefixtures("no_installed_plugins")


def call(*words: object):
    app = build_app()
    commands.register(app)
    return command_line.call(*words, app=app)


@pytest.fixture
def model() -> CodeEncoder:
    torch.manual_seed(0)
    model = CodeEncoder(8, 64, 1).eval().requires_grad_(False)
    model.blocks.output.conv.bias.zero_()
    return model


@pytest.fixture
def encoder(model, tmp_path):
    save_file(model.state_dict(), tmp_path / "encoder.safetensors")
    return tmp_path / "encoder.safetensors"


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels.repeat(20, 0).repeat(20, 1))


@pytest.fixture
def root(tmp_path):
    """A data set of the user's own, of images."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows = []
    for number, split in enumerate(("train", "train", "test")):
        picture(number).save(folder / f"{number}.png")
        rows.append({"split": split, "image": f"{number}.png", "label": "x", "question": "which?", "answer": "this"})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def codes(root, out, encoder, *options: object):
    words = ["data", "codes", "--dataset", "manifest", "--data-root", root, "--out", out, "--workers", 0]
    return call(*words, "--device", "cpu", "--encoder", encoder, *options)


def test_codes_of_published_data(root, tmp_path, encoder, model):
    out = tmp_path / "codes.safetensors"
    result = codes(root, out, encoder, "--frames", 2, "--size", 64)
    assert result.exit_code == 0, result.output
    assert f"{out}: codes of 3 videos (3 new), 2 frames per video (centres), 64 pixels" in result.stdout
    assert "videos 3/3 (100%)" in result.stderr
    file = CodeFile(out)
    assert sorted(file) == ["0.png", "1.png", "2.png"]
    assert file.shape == (2, 2, 2)
    for number in range(3):
        pixels = Image.new("RGB", (80, 80))
        pixels.paste(picture(number), (0, 10))
        small = torch.from_numpy(np.array(pixels.resize((16, 16), Image.Resampling.BILINEAR))).permute(2, 0, 1)
        expected = model(small[None] / 255).argmax(1).numpy().repeat(2, 0)
        np.testing.assert_array_equal(file.codes(f"{number}.png"), expected)
    again = codes(root, out, encoder, "--frames", 2, "--size", 64, "--json")
    assert again.exit_code == 0, again.output
    assert again.stderr == ""
    assert json.loads(again.stdout) == {
        "codes": str(out),
        "settings": {"frames": 2, "sampler": "centres", "size": 64, "encoder": fingerprint(model)},
        "total": 3,
        "added": 0,
        "failed": {},
    }


@pytest.mark.slow
def test_other_processes_decode_the_same(root, tmp_path, encoder):
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    assert codes(root, one, encoder, "--size", 64).exit_code == 0
    assert codes(root, other, encoder, "--size", 64, "--workers", 1).exit_code == 0
    assert one.read_bytes() == other.read_bytes()


def write_prepared(root) -> None:
    def encoded(seed: int) -> str:
        buffer = io.BytesIO()
        picture(seed).save(buffer, "JPEG")
        return base64.b64encode(buffer.getvalue()).decode()

    root.mkdir()
    frames = {key: [encoded(10 * number + t) for t in range(5)] for number, key in enumerate("abx")}
    (root / "img_msvd.pkl").write_bytes(pickle.dumps(frames))
    rows = {"train": [{"video": "a", "question": "who?", "answer": 0}], "vocab": ["man", "woman"]}
    rows["test"] = [{"video": "b", "question": "who?", "answer": 1}, {"video": "gone", "question": "who?", "answer": 1}]
    (root / "txt_msvd-qa.json").write_text(json.dumps(rows))


def test_codes_of_prepared_frames(tmp_path, encoder, model):
    root, out = tmp_path / "msvd", tmp_path / "codes.safetensors"
    write_prepared(root)
    words = ["data", "codes", "--dataset", "msvd", "--data-root", root, "--out", out, "--encoder", encoder]
    result = call(*words)
    command_line.assert_stopped(result, "1 of 3 videos that the annotations name are not in")
    assert not out.exists()
    result = call(*words, "--allow-missing")
    assert result.exit_code == 0, result.output
    assert f"prepared files: {root / 'img_msvd.pkl'}" in result.stderr
    assert "1 of 3 videos are missing" in result.stderr
    file, frames = CodeFile(out), PreparedFrames(root / "img_msvd.pkl")
    assert list(file) == ["a", "b"]
    assert file.settings.sampler == "prepared"
    assert file.shape == (5, 7, 7)
    for key, expected in compute(model, dict.fromkeys("ab", frames)):
        np.testing.assert_array_equal(file.codes(key), expected)
    command_line.assert_stopped(
        call(*words, "--allow-missing", "--frames", 4),
        "img_msvd.pkl holds 5 frames per video, but --frames is 4",
        "--frames 5",
    )


def test_a_broken_file_is_named_and_left_out(root, tmp_path, encoder):
    (root / "1.png").write_bytes((root / "1.png").read_bytes()[:60])
    out = tmp_path / "codes.safetensors"
    result = codes(root, out, encoder, "--size", 64)
    assert result.exit_code == 0, result.output
    assert "warning: 1 of 3 videos could not be decoded and have no codes: 1.png." in result.stderr
    assert "codes of 2 videos (2 new)" in result.stdout
    picture(1).save(root / "1.png")
    assert "codes of 3 videos (1 new)" in codes(root, out, encoder, "--size", 64).stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", 100], "--size 100 is not a multiple of 32"),
        (["--sampler", "random"], "sampler 'random' cannot make codes"),
        (["--sampler", "centers"], "Did you mean 'centres'?"),
        (["--task", "retrieve"], "no annotations for task 'retrieve'"),
        (["--sample"], "--sample generates its own data, but --data-root was given too"),
        (["--frames", 0], "greater than or equal to 1"),
        (["--device", "tpu9"], "Unknown device 'tpu9'"),
        (["--encoder", "absent.pkl"], "there is no file absent.pkl"),
    ],
)
def test_mistakes_are_answered_before_anything_is_written(root, tmp_path, encoder, options, message):
    out = tmp_path / "codes.safetensors"
    result = codes(root, out, encoder, *options)
    command_line.assert_stopped(result, message)
    assert not out.exists()


def test_without_an_encoder_it_says_where_to_get_it(root, tmp_path):
    words = ["data", "codes", "--dataset", "manifest", "--data-root", root, "--out", tmp_path / "codes.safetensors"]
    command_line.assert_stopped(call(*words), "--encoder was not given", commands.ENCODER)
    command_line.assert_stopped(call(*words, "--encoder", root / "0.png"), "0.png")


def test_codes_of_another_kind_are_not_mixed_in(root, tmp_path, encoder):
    out = tmp_path / "codes.safetensors"
    assert codes(root, out, encoder, "--size", 64).exit_code == 0
    result = codes(root, out, encoder, "--size", 96)
    command_line.assert_stopped(
        result, "but 5 frames per video (centres), 96 pixels", "holds codes of 5 frames per video (centres), 64 pixels"
    )


@pytest.mark.slow
def test_codes_of_a_miniature(tmp_path, encoder, monkeypatch):
    pytest.importorskip("av")
    monkeypatch.setenv("MELTR_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "codes.safetensors"
    words = ["data", "codes", "--dataset", "msvd", "--sample", "--out", out, "--encoder", encoder, "--size", 64]
    result = call(*words, "--json", "--workers", 0)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["added"] == len(CodeFile(out)) > 0
