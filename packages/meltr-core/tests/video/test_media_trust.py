"""Containers: the film and not its cover, no other file's content, damage that decoders pass over."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from meltr.video.frames.containers import damaged_at
from meltr.video.frames.media import MediaError, decode
from video_files import numbers_of, picture, write_video

av = pytest.importorskip("av")


def everything(total):
    return range(total)


def hurt(file: Path, part: float, width: int = 400) -> Path:
    content = bytearray(file.read_bytes())
    at = int(part * len(content))
    for place in range(at, min(len(content), at + width)):
        content[place] ^= 0x5A
    changed = file.with_name(f"hurt-{file.name}")
    changed.write_bytes(content)
    return changed


KINDS = {
    "a.mkv": {"options": {"g": "12"}},
    "a.webm": {"codec": "libvpx-vp9"},
    "lossless.mkv": {"codec": "ffv1"},
    "a.mp4": {"options": {"g": "12"}},
    "first.mp4": {"container": {"movflags": "faststart"}},
    "a.mov": {},
}


@pytest.mark.parametrize("name", KINDS)
def test_no_damage_leaves_a_shorter_video_without_an_error(tmp_path, name):
    file = write_video(tmp_path / name, 40, **KINDS[name])
    assert (decode(file, everything).total, damaged_at(file)) == (40, None)
    refused = 0
    for part in [hundredth / 100 for hundredth in range(20, 100, 6)]:
        try:
            assert decode(hurt(file, part), lambda total: (0,)).total == 40, part
        except MediaError:
            refused += 1
    assert refused > 5


@pytest.mark.parametrize("table", ["stts", "stsz", "stsc", "stco"])
@pytest.mark.parametrize("name", ["a.mp4", "a.mov"])
def test_tables_that_do_not_fit_each_other_are_named(tmp_path, name, table):
    """FFmpeg reads the shortest of them, and gives a shorter film without an error."""
    file = write_video(tmp_path / name, 40)
    content = bytearray(file.read_bytes())
    at = content.rindex(table.encode()) + (20 if table == "stsz" else 12)
    content[at + (2 if table == "stsz" else 3)] ^= 0x40  # the first size, count or place
    if table == "stco":
        content[at] ^= 0x40
    file.write_bytes(content)
    with pytest.raises(MediaError, match=r"is damaged: its table st[a-z]+ does not fit the others"):
        decode(file, everything)


def test_a_matroska_file_without_sizes_is_whole(tmp_path):
    """As a recorder writes it that cannot go back: sizes of segment and clusters are unknown."""
    file = write_video(tmp_path / "a.mkv", 30, options={"g": "10"}, container={"live": "1"})
    assert numbers_of(decode(file, everything).frames) == list(range(30))


def test_a_matroska_file_with_sound_is_whole(tmp_path):
    file = tmp_path / "a.mkv"
    with av.open(str(file), "w") as output:
        sound = output.add_stream("pcm_s16le", rate=8000)
        video = output.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 80, 48, "yuv420p"
        for number in range(30):
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
            samples.rate, samples.pts = 8000, number * 800
            output.mux(sound.encode(samples))
            output.mux(video.encode(av.VideoFrame.from_ndarray(picture(number), "rgb24")))
        output.mux(video.encode())
    assert damaged_at(file) is None
    assert decode(file, everything).total == 30


def test_a_gif_with_a_block_that_is_none_is_refused(tmp_path):
    file = write_video(tmp_path / "a.gif", 20, codec="gif", pixels="rgb8")
    content = bytearray(file.read_bytes())
    at = content.index(b"!\xf9\x04", len(content) // 2)  # the extension before a picture
    content[at] = 0x77
    file.write_bytes(content)
    with pytest.raises(MediaError, match=f"is damaged at byte {at:,}"):
        decode(file, everything)


def boxes(content: bytes) -> list[bytes]:
    found, at = [], 0
    while at < len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        found.append(content[at : at + size])
        at += size
    return found


def covers_first(file: Path) -> None:
    """Move the metadata with the cover before the tracks, as some writers do; all positions stay."""
    changed = []
    for box in boxes(file.read_bytes()):
        if box[4:8] == b"moov":
            box = box[:8] + b"".join(sorted(boxes(box[8:]), key=lambda each: each[4:8] != b"udta"))
        changed.append(box)
    file.write_bytes(b"".join(changed))


def test_the_film_is_read_and_not_its_cover(tmp_path):
    film = write_video(tmp_path / "film.mp4", 12)
    with av.open(str(film)) as source, av.open(str(tmp_path / "a.mp4"), "w") as output:
        cover = output.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 80, 48, "yuvj420p"
        cover.disposition = 0x400
        stream = output.add_stream_from_template(source.streams.video[0])
        output.start_encoding()
        output.mux(cover.encode(av.VideoFrame.from_ndarray(picture(1000), "rgb24")))
        output.mux(cover.encode())
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                output.mux(packet)
    covers_first(tmp_path / "a.mp4")
    with av.open(str(tmp_path / "a.mp4")) as written:
        assert int(written.streams.video[0].disposition) & 0x400
    assert numbers_of(decode(tmp_path / "a.mp4", everything).frames) == list(range(12))


def test_a_list_of_files_under_the_name_of_a_video_reads_nothing_of_others(tmp_path):
    write_video(tmp_path / "secret.mp4", 5)
    (tmp_path / "a.mp4").write_text("ffconcat version 1.0\nfile secret.mp4\n")
    with pytest.raises(MediaError, match="neither a video nor an image"):
        decode(tmp_path / "a.mp4", everything)
    (tmp_path / "b.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n")
    with pytest.raises(MediaError, match="neither a video nor an image"):
        decode(tmp_path / "b.mp4", everything)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_named_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    with pytest.raises(MediaError, match="is not a regular file"):
        decode(tmp_path / "a.mp4", everything)


def test_a_clip_that_was_cut_between_key_frames_starts_at_its_first_key_frame(tmp_path):
    whole = write_video(tmp_path / "whole.mp4", 40, options={"g": "12"})
    with av.open(str(whole)) as source, av.open(str(tmp_path / "cut.mp4"), "w") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(source.streams.video[0])):
            if packet.dts is not None and number >= 5:
                packet.stream = stream
                output.mux(packet)
    assert 25 <= decode(tmp_path / "cut.mp4", everything).total <= 35


def test_an_absurd_time_stamp_is_refused(tmp_path):
    whole = write_video(tmp_path / "whole.mp4", 20)
    with av.open(str(whole)) as source, av.open(str(tmp_path / "late.mkv"), "w") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                if packet.pts > 8000:
                    packet.pts += 10**10
                    packet.dts += 10**10
                packet.stream = stream
                output.mux(packet)
    with pytest.raises(MediaError, match="time stamp"):
        decode(tmp_path / "late.mkv", everything)
