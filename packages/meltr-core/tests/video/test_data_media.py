"""Decoding: the right frame by its number, whatever the container, and an answer to every kind of broken file."""

from __future__ import annotations

import base64
import io
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from meltr.errors import UserError
from meltr.video.frames.media import DecodedMedia, MediaError, decode
from meltr.video.frames.sampling import centres
from meltr.video.frames.source import FrameSource
from places import shared
from video_files import number_of, numbers_of, picture, write_video

av = pytest.importorskip("av")
Image = pytest.importorskip("PIL.Image")

KINDS = {
    "b-frames.mp4": {"options": {"bf": "3", "g": "12"}},
    "faststart.mp4": {"container": {"movflags": "faststart"}},
    "one-keyframe.mkv": {"options": {"g": "1000"}},
    "open-gop.ts": {"options": {"g": "10", "x264-params": "open-gop=1"}},
    "xvid.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "lossless.mkv": {"codec": "ffv1"},
    "animated.gif": {"codec": "gif", "pixels": "rgb8"},
}


def everything(total):
    return range(total)


@pytest.mark.parametrize("name", KINDS)
def test_all_frames_come_back_in_order(tmp_path, name):
    found = decode(write_video(tmp_path / name, 50, **KINDS[name]), everything)
    assert numbers_of(found.frames) == list(found.indices) == list(range(50))
    assert found.frames.shape == (50, 48, 80, 3)
    assert found.frames.dtype == np.uint8
    assert found.total == 50


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("threads", [0, 1])
def test_chosen_frames_are_the_right_ones(tmp_path, name, threads):
    found = decode(write_video(tmp_path / name, 47, **KINDS[name]), lambda total: centres(total, 5), threads=threads)
    assert numbers_of(found.frames) == [7, 15, 23, 31, 39]


def test_frames_may_be_wanted_twice_and_in_any_order(tmp_path):
    found = decode(write_video(tmp_path / "a.mp4", 9), lambda total: (8, 0, 0, 3))
    assert numbers_of(found.frames) == [8, 0, 0, 3]


def test_a_container_that_announces_too_many_frames_is_corrected(tmp_path):
    """The header of an AVI file is changed from 12 frames to 30."""
    file = write_video(tmp_path / "a.avi", 12, codec="mpeg4")
    content = bytearray(file.read_bytes())
    for field in (content.index(b"avih") + 8 + 16, content.index(b"strh") + 8 + 32):
        assert int.from_bytes(content[field : field + 4], "little") == 12
        content[field : field + 4] = (30).to_bytes(4, "little")
    file.write_bytes(content)
    with av.open(str(file)) as container:
        assert container.streams.video[0].frames == 30
    found = decode(file, lambda total: centres(total, 2))
    assert found.total == 12
    assert numbers_of(found.frames) == [4, 8]


def test_a_file_with_sound_gives_its_pictures(tmp_path):
    file = tmp_path / "a.mkv"
    with av.open(str(file), "w") as output:
        sound = output.add_stream("pcm_s16le", rate=8000)
        video = output.add_stream("ffv1", rate=10)
        video.width, video.height, video.pix_fmt = 80, 48, "bgr0"
        for number in range(6):
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
            samples.rate, samples.pts = 8000, number * 800
            output.mux(sound.encode(samples))
            output.mux(video.encode(av.VideoFrame.from_ndarray(picture(number), "rgb24")))
        output.mux(video.encode())
    assert numbers_of(decode(file, everything).frames) == list(range(6))


@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_a_rotated_recording_is_shown_upright(tmp_path, degrees):
    if not hasattr(av.video.stream.VideoStream, "set_display_rotation"):
        pytest.skip("this PyAV cannot write a rotation")
    frames = decode(write_video(tmp_path / "a.mp4", 3, rotation=degrees), everything).frames
    plain = decode(write_video(tmp_path / "b.mp4", 3), everything).frames
    np.testing.assert_array_equal(frames, np.rot90(plain, degrees // 90, axes=(1, 2)))


STILLS = [(ending, mode) for ending in ("png", "webp", "bmp", "tiff") for mode in ("RGB", "L", "RGBA", "P")]


@pytest.mark.parametrize(("ending", "mode"), [*STILLS, ("jpg", "RGB"), ("jpg", "L"), ("jpg", "CMYK"), ("ppm", "RGB")])
def test_a_still_image_is_a_video_of_one_frame(tmp_path, ending, mode):
    image = Image.fromarray(picture(345)).convert(mode)
    image.save(tmp_path / f"a.{ending}", **({"lossless": True} if ending == "webp" else {}))
    found = decode(tmp_path / f"a.{ending}", lambda total: centres(total, 4))
    assert (found.total, found.frames.shape) == (1, (4, 48, 80, 3))
    assert numbers_of(found.frames) == [345] * 4


def test_the_ending_of_a_name_means_nothing(tmp_path):
    video = write_video(tmp_path / "a.mp4", 5).rename(tmp_path / "a.jpg")
    assert decode(video, everything).total == 5
    Image.fromarray(picture(7)).save(tmp_path / "b.png")
    (tmp_path / "b.png").rename(tmp_path / "b.mp4")
    assert number_of(decode(tmp_path / "b.mp4", everything).frames[0]) == 7


@pytest.mark.parametrize("ending", ["webp", "png"])
def test_animated_images_are_videos(tmp_path, ending):
    first, *others = [Image.fromarray(picture(number)) for number in range(7)]
    first.save(tmp_path / f"a.{ending}", save_all=True, append_images=others, duration=100)
    found = decode(tmp_path / f"a.{ending}", lambda total: (1, 5, total - 1))
    assert numbers_of(found.frames) == [1, 5, 6]
    assert found.total == 7


def test_a_photograph_is_shown_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(picture(9)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(decode(tmp_path / "a.png", everything).frames[0], np.rot90(picture(9), -1))


def cut(file: Path, part: float) -> Path:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * part)])
    return file


@pytest.mark.parametrize("name", ["b-frames.mp4", "faststart.mp4", "one-keyframe.mkv", "xvid.avi", "vp9.webm"])
@pytest.mark.parametrize("part", [0.3, 0.7, 0.95])
def test_a_truncated_video_is_refused(tmp_path, name, part):
    file = cut(write_video(tmp_path / name, 50, **KINDS[name]), part)
    with pytest.raises(MediaError, match="is truncated: by its own headers, at least") as error:
        decode(file, everything)
    assert str(file) in error.value.message


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "gif"])
def test_a_truncated_image_is_refused(tmp_path, ending):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / f"a.{ending}")
    with pytest.raises(MediaError, match=r"is truncated|is damaged"):
        decode(cut(tmp_path / f"a.{ending}", 0.6), everything)


def test_a_gif_without_its_last_byte_is_read(tmp_path):
    """Some writers leave the trailer out; all frames are there."""
    file = write_video(tmp_path / "a.gif", 5, codec="gif", pixels="rgb8")
    content = file.read_bytes()
    assert content.endswith(b"\0;")
    file.write_bytes(content[:-1])
    assert decode(file, everything).total == 5


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>" * 50, bytes(range(256)) * 20])
def test_something_else_under_the_name_of_a_video_is_refused(tmp_path, content):
    file = tmp_path / "a.mp4"
    file.write_bytes(content)
    with pytest.raises(MediaError, match=f"neither a video nor an image.*\\({len(content):,} bytes\\)"):
        decode(file, everything)


def test_damage_in_the_middle_is_found_behind_the_last_wanted_frame(tmp_path):
    file = write_video(tmp_path / "a.mp4", 60, options={"g": "5"}, container={"movflags": "faststart"})
    content = bytearray(file.read_bytes())
    start = content.index(b"mdat") + (len(content) - content.index(b"mdat")) // 2
    content[start:] = b"\xff" * (len(content) - start)
    file.write_bytes(content)
    with pytest.raises(MediaError, match=r"is damaged after frame [1-5]\d"):
        decode(file, lambda total: (0,))


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(MediaError, match=r"nowhere\.mp4: No such file"):
        decode(tmp_path / "nowhere.mp4", everything)
    with pytest.raises(MediaError, match="Is a directory"):
        decode(tmp_path, everything)


def test_an_unknown_codec_is_refused(tmp_path):
    file = write_video(tmp_path / "a.avi", 3, codec="mpeg4")
    content = file.read_bytes()
    assert content.count(b"FMP4") == 2
    file.write_bytes(content.replace(b"FMP4", b"ZZZZ"))
    with pytest.raises(MediaError, match="has a codec that PyAV cannot decode"):
        decode(file, everything)


def test_sound_alone_has_no_pictures(tmp_path):
    file = tmp_path / "a.wav"
    with av.open(str(file), "w") as output:
        stream = output.add_stream("pcm_s16le", rate=8000)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        samples.rate = 8000
        output.mux(stream.encode(samples))
    with pytest.raises(MediaError, match="holds no video stream"):
        decode(file, everything)


def test_a_video_without_frames_is_refused(tmp_path):
    file = tmp_path / "a.avi"
    with av.open(str(file), "w") as output:
        stream = output.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 80, 48, "yuv420p"
        output.start_encoding()
    with pytest.raises(MediaError, match="has no frame that can be decoded"):
        decode(file, everything)


@pytest.mark.parametrize(("module", "library"), [("av", "PyAV"), ("PIL.Image", "Pillow")])
def test_a_missing_library_is_answered_with_the_command_that_installs_it(tmp_path, monkeypatch, module, library):
    file = write_video(tmp_path / "a.mp4", 2)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=f"needs {library}") as error:
        decode(file, everything)
    assert not isinstance(error.value, MediaError)
    assert "meltr-core[video]" in str(error.value.hint)


def test_importing_the_modules_needs_no_library():
    heavy = ("av", "PIL", "torch")
    names = ("frames.media", "frames.pictures", "frames.sampling", "frame_cache")
    code = f"import sys; sys.modules.update(dict.fromkeys({heavy}))\n" + "".join(
        f"import meltr.video.{name}\n" for name in names
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_decoded_media_is_a_frame_source(tmp_path):
    files = {"long": write_video(tmp_path / "a.mp4", 40), "short": write_video(tmp_path / "b.mp4", 1, first=77)}
    source = pickle.loads(pickle.dumps(DecodedMedia(files, 3)))
    assert isinstance(source, FrameSource)
    assert numbers_of(source.frames("long")) == [10, 20, 30]
    assert numbers_of(source.frames("short")) == [77, 77, 77]
    with pytest.raises(KeyError, match="other"):
        source.frames("other")
    with pytest.raises(UserError, match="no frame sampler 'middle'"):
        DecodedMedia(files, 3, "middle")


def test_published_clips_decode_to_the_published_frames():
    """Counts and choices of the official extraction; no neighbour is nearer to its stored JPEGs than our frame."""
    from meltr.data.safe_pickle import load_pickle

    samples = shared("data", "violet_samples")
    table = json.loads(shared("reference", "violet", "frames.json").read_text())
    published = load_pickle(samples / "extracted" / "msrvtt.pkl")
    for name, case in list(table.items())[:4]:
        around = [index + shift for index in case["indices"] for shift in (0, -1, 1)]
        found = decode(samples / "videos" / f"{name}.mp4", lambda total, around=around: around)
        assert found.total == case["decoded_frames"]
        for number, jpeg in enumerate(published[name]):
            stored = np.asarray(Image.open(io.BytesIO(base64.b64decode(jpeg)))).astype(int)
            ours, *neighbours = (
                np.abs(recoded(frame) - stored).mean() for frame in found.frames[3 * number : 3 * number + 3]
            )
            assert ours < 0.75
            assert ours <= min(neighbours)


def recoded(frame: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG")
    return np.asarray(Image.open(buffer)).astype(int)
