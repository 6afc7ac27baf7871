"""Visual codes: prepared ones, those of colours, and those that an encoder makes."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from meltr import UserError
from meltr.video.frames.source import Frames
from meltr_violet import code_extraction
from meltr_violet.code_extraction import compute, fill_codes, fingerprint
from meltr_violet.code_file import CodeFile, CodeSettings, CodeTable
from meltr_violet.codes import CodeSource, FixedCodebook, PreparedCodes
from meltr_violet.dvae import CodeEncoder
from places import shared

# Prepared


@pytest.mark.parametrize(
    ("name", "count", "shape"),
    [
        ("extracted/msrvtt_vq.pkl", 10, (5, 7, 7)),
        ("data/vq_webvid2.5m.pkl", 450, (4, 7, 7)),
        ("data/vq_cc3m.pkl", 450, (1, 7, 7)),
    ],
)
def test_real_codes(name, count, shape):
    file = shared("data", "violet_samples", name)
    codes, raw = PreparedCodes(file), pickle.loads(file.read_bytes())
    assert isinstance(codes, CodeSource)
    assert len(codes) == count
    assert codes.shape == shape
    assert list(codes) == list(raw)
    for key, value in raw.items():
        assert codes.codes(key).dtype == np.int16
        np.testing.assert_array_equal(codes.codes(key), np.array(value).astype(np.int64))
    assert "no such key" not in codes
    with pytest.raises(KeyError):
        codes.codes("no such key")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], r"vq\.pkl: it holds list"),
        ({}, r"vq\.pkl: it holds an empty dict"),
        ({1: np.zeros((1, 2, 2), int)}, r"the name of a video is 1"),
        ({"a": np.zeros((2, 2), int)}, r"vq\.pkl, a: int64 of shape \(2, 2\)"),
        ({"a": np.zeros((1, 2, 2))}, r"vq\.pkl, a: float64"),
        ({"a": []}, r"vq\.pkl, a: its frames do not fit"),
        ({"a": [np.zeros((2, 2), int), np.zeros((2, 3), int)]}, r"vq\.pkl, a: its frames do not fit"),
        ({"a": np.full((1, 2, 2), 40_000)}, r"vq\.pkl, a: codes from 40000"),
        ({"a": np.full((1, 2, 2), -1)}, r"vq\.pkl, a: codes from -1"),
        ({"a": np.zeros((1, 2, 2), int), "b": np.zeros((2, 2, 2), int)}, r"vq\.pkl, b: codes of shape \(2, 2, 2\)"),
        ({"a": "text"}, r"vq\.pkl, a: <U4"),
    ],
)
def test_other_files_are_named_with_the_place(tmp_path, content, message):
    (tmp_path / "vq.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=message):
        PreparedCodes(tmp_path / "vq.pkl")


# Colours


def test_a_colour_has_the_code_of_its_levels():
    book = FixedCodebook(cell=16)
    assert book.size == 512
    squares = np.zeros((2, 32, 48 - 16, 3), np.uint8)
    squares[0, :16, :16] = (255, 0, 0)
    squares[0, :16, 16:] = (0, 32, 31)
    squares[0, 16:, :16] = (0, 0, 255)
    squares[1] = (255, 255, 255)
    codes = book.codes_of(squares)
    assert codes.dtype == np.int16
    assert codes.tolist() == [[[7 * 64, 1 * 8], [7, 0]], [[511, 511], [511, 511]]]


@pytest.mark.parametrize(("size", "cell", "levels"), [(96, 32, 8), (100, 32, 8), (33, 32, 4), (20, 7, 3)])
def test_codes_of_colours_are_the_levels_of_the_mean(size, cell, levels):
    squares = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    book = FixedCodebook(cell, levels)
    codes, side = book.codes_of(squares), -(-size // cell)
    assert codes.shape == (2, side, side)
    for t, row, column in np.ndindex(codes.shape):
        part = squares[t, row * cell : (row + 1) * cell, column * cell : (column + 1) * cell].reshape(-1, 3)
        r, g, b = (int(sum(map(int, channel)) * levels / (256 * len(channel))) for channel in part.T)
        assert codes[t, row, column] == (r * levels + g) * levels + b
    assert codes.max() < book.size


# Encoded


@dataclass
class Pictures:
    """A `FrameSource` of the pictures it is given; counts what is asked for."""

    videos: dict[str, Frames]
    broken: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)

    def frames(self, key: str) -> Frames:
        self.asked.append(key)
        if key in self.broken:
            raise UserError(f"{key}.mp4 is damaged.")
        return self.videos[key]

    def as_videos(self) -> dict[str, Pictures]:
        return dict.fromkeys(self.videos, self)


@pytest.fixture
def encoder() -> CodeEncoder:
    torch.manual_seed(0)
    model = CodeEncoder(8, 64, 1).eval().requires_grad_(False)
    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
    model.blocks.output.conv.bias.copy_(-model(torch.rand(4, 3, 32, 32)).mean((0, 2, 3)))  # or one code wins always
    return model


@pytest.fixture
def pictures() -> Pictures:
    rng = np.random.default_rng(0)
    sizes = [(40, 60), (61, 40), (56, 56), (30, 31), (90, 20)]
    blocks = [rng.integers(0, 256, (2, -(-h // 10), -(-w // 10), 3), dtype=np.uint8) for h, w in sizes]
    frames = [b.repeat(10, 1).repeat(10, 2)[:, :h, :w] for b, (h, w) in zip(blocks, sizes, strict=True)]
    return Pictures({f"v{number}": each for number, each in enumerate(frames)})


def by_hand(encoder: CodeEncoder, frames: Frames, side: int) -> np.ndarray:
    """Padding and resizing with Pillow, value and argmax as published, a picture at a time."""
    rows = []
    for frame in frames:
        image = Image.fromarray(frame)
        w, h = image.size
        border = (0, (w - h) // 2) if w > h else ((h - w) // 2, 0)
        square = ImageOps.expand(image, border).resize((side, side), Image.Resampling.BILINEAR)
        values = 0.8 * torch.from_numpy(np.array(square)).permute(2, 0, 1)[None].double() / 255 + 0.1
        rows.append(encoder.double().blocks(values)[0].argmax(0).numpy())
    encoder.float()
    return np.stack(rows)


@pytest.mark.parametrize(("size", "clips"), [(224, 2), (96, 16)])
def test_codes_are_those_of_single_pictures(encoder, pictures, size, clips):
    made = dict(compute(encoder, pictures.as_videos(), size=size, clips=clips))
    assert list(made) == list(pictures.videos)
    for key, frames in pictures.videos.items():
        codes = made[key]
        assert codes.dtype == np.int16
        assert codes.shape == (2, size // 32, size // 32)
        np.testing.assert_array_equal(codes, by_hand(encoder, frames, size // 4))
    assert len(np.unique(np.stack(list(made.values())))) > 10


def test_sizes_must_have_whole_cells(encoder, pictures):
    with pytest.raises(ValueError, match="size=100 is not a multiple of 32"):
        list(compute(encoder, pictures.as_videos(), size=100))


def test_a_video_that_cannot_be_decoded_is_not_the_end(encoder, pictures):
    whole = dict(compute(encoder, pictures.as_videos(), size=64))
    pictures.broken = {"v0", "v3"}
    pictures.videos["v9"] = np.zeros((2, 5), np.uint8)
    made = dict(compute(encoder, pictures.as_videos(), size=64, clips=2))
    assert made["v0"] == "v0.mp4 is damaged."
    assert made["v9"].startswith("v9: ")
    for key in ("v1", "v2", "v4"):
        np.testing.assert_array_equal(made[key], whole[key])


def test_the_fingerprint_is_that_of_the_weights(encoder):
    same = CodeEncoder(8, 64, 1)
    assert fingerprint(same) != fingerprint(encoder)
    same.load_state_dict(encoder.state_dict())
    assert fingerprint(same) == fingerprint(encoder)
    same.blocks.output.conv.bias.data[3] += 1e-3
    assert fingerprint(same) != fingerprint(encoder)


# The file


def settings_of(model: CodeEncoder, **changes) -> CodeSettings:
    return CodeSettings(**{"frames": 2, "sampler": "centres", "size": 64, "encoder": fingerprint(model)} | changes)


def test_the_file_gives_back_what_was_made(encoder, pictures, tmp_path):
    path, settings = tmp_path / "new" / "codes.safetensors", settings_of(encoder)
    seen = []
    report = fill_codes(pictures.as_videos(), path, encoder, settings, progress=lambda *each: seen.append(each))
    assert report == (5, 5, {})
    assert seen == [(number, 5, 0) for number in range(6)]
    file = pickle.loads(pickle.dumps(CodeFile(path)))
    assert isinstance(file, CodeSource)
    assert file.settings == settings
    assert file.shape == (2, 2, 2)
    assert list(file) == list(pictures.videos)
    for key, codes in compute(encoder, pictures.as_videos(), size=64):
        np.testing.assert_array_equal(file.codes(key), codes)
    assert "v9" not in file
    with pytest.raises(KeyError):
        file.codes("v9")
    assert [each.name for each in path.parent.iterdir()] == ["codes.safetensors"]


def test_only_what_is_lacking_is_made(encoder, pictures, tmp_path):
    path, settings = tmp_path / "codes.safetensors", settings_of(encoder)
    pictures.broken = {"v1"}
    report = fill_codes(pictures.as_videos(), path, encoder, settings)
    assert report == (5, 4, {"v1": "v1.mp4 is damaged."})
    assert CodeFile(path).failed == {"v1": "v1.mp4 is damaged."}
    assert "v1" not in CodeFile(path)
    pictures.broken, pictures.asked = set(), []
    assert fill_codes(pictures.as_videos(), path, encoder, settings) == (5, 1, {})
    assert pictures.asked == ["v1"]
    assert set(CodeFile(path)) == set(pictures.videos)
    assert CodeFile(path).failed == {}


def test_broken_off_it_goes_on(encoder, pictures, tmp_path):
    path, settings = tmp_path / "codes.safetensors", settings_of(encoder)

    def interrupt(done: int, total: int, failed: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    videos = pictures.as_videos()
    with pytest.raises(KeyboardInterrupt):
        fill_codes(videos, path, encoder, settings, progress=interrupt)
    assert list(CodeFile(path)) == ["v0", "v1", "v2"]
    pictures.asked = []
    assert fill_codes(videos, path, encoder, settings).added == 2
    assert pictures.asked == ["v3", "v4"]


def test_a_killed_process_loses_only_what_came_last(encoder, pictures, tmp_path, monkeypatch):
    path, held = tmp_path / "codes.safetensors", []
    monkeypatch.setattr(code_extraction, "SAVED", 2)

    def look(done: int, total: int, failed: int) -> None:
        held.append(len(CodeFile(path)) if path.exists() else 0)

    fill_codes(pictures.as_videos(), path, encoder, settings_of(encoder), progress=look)
    assert held == [0, 0, 2, 2, 4, 4]
    assert len(CodeFile(path)) == 5


def test_a_file_is_replaced_whole_or_not_at_all(encoder, tmp_path, monkeypatch):
    path = tmp_path / "codes.safetensors"
    table = CodeTable(settings_of(encoder), {"a": np.zeros((2, 2, 2), np.int16)})
    table.write(path)
    table.rows["b"] = table.rows["a"]

    def full(*paths: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("meltr.files.os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        table.write(path)
    assert list(CodeFile(path)) == ["a"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("changes", [{"size": 96}, {"sampler": "middles"}, {"frames": 3}, {"encoder": "another"}])
def test_codes_of_two_kinds_are_not_mixed(encoder, pictures, tmp_path, changes):
    path = tmp_path / "codes.safetensors"
    fill_codes(pictures.as_videos(), path, encoder, settings_of(encoder))
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"holds codes of 2 frames a video .* asked for were"):
        fill_codes(pictures.as_videos(), path, encoder, settings_of(encoder, **changes))
    assert path.read_bytes() == before


def test_nothing_is_written_if_nothing_can_be_decoded(encoder, pictures, tmp_path):
    pictures.broken = set(pictures.videos)
    with pytest.raises(UserError, match=r"None of 5 videos can be decoded. The first, v0: v0\.mp4 is damaged"):
        fill_codes(pictures.as_videos(), tmp_path / "codes.safetensors", encoder, settings_of(encoder))
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_refused(encoder, tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "codes.safetensors"
    with pytest.raises(UserError, match="There is no file of visual codes"):
        CodeFile(path)
    table = CodeTable(settings_of(encoder), {"a": np.zeros((2, 2, 2), np.int16)})
    table.write(path)
    whole = path.read_bytes()
    for content in (whole[:-5], b"", b"PK" + whole):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"codes\.safetensors is damaged"):
            CodeFile(path)
    save_file({"codes": np.zeros(3)}, path)
    with pytest.raises(UserError, match=r"not of visual codes"):
        CodeFile(path)
    path.write_bytes(whole.replace(b'\\"a\\"', b'\\"a\\",\\"b\\"'))
    with pytest.raises(UserError, match=r"codes\.safetensors is damaged"):
        CodeFile(path)


def test_importing_needs_no_torch(tmp_path: Path):
    import subprocess
    import sys

    modules = "meltr_violet.codes, meltr_violet.code_file, meltr_violet.prepared, meltr_violet.commands"
    script = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
