"""One reader of pictures: every mode and orientation gives the colours that a viewer shows, or an error."""

from __future__ import annotations

import numpy as np
import pytest

from meltr.video.frames.media import MediaError, decode

Image = pytest.importorskip("PIL.Image")

RAMP = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (48, 1))


def read(path):
    return decode(path, lambda total: (0,)).frames[0]


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_a_ramp_of_16_bits_is_a_ramp_of_8(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    if ending == "pgm":
        path.write_bytes(b"P5 64 48 65535\n" + RAMP.astype(">u2").tobytes())
    else:
        Image.fromarray(RAMP).save(path)
    expected = np.repeat(np.rint(RAMP / 257).astype(int)[:, :, None], 3, axis=2)
    assert np.abs(read(path).astype(int) - expected).max() <= 1


@pytest.mark.parametrize(("kind", "what"), [(np.float32, "floating-point"), (np.int32, "more than 16 bits")])
def test_pixels_of_unknown_range_are_refused(tmp_path, kind, what):
    Image.fromarray((RAMP / 65535).astype(kind)).save(tmp_path / "a.tif")
    with pytest.raises(MediaError, match=f"{what}.*\n.*8 bits"):
        read(tmp_path / "a.tif")


def test_what_is_transparent_is_white(tmp_path):
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:4] = (200, 10, 10, 255)
    pixels[4:6] = (0, 0, 0, 128)
    expected = np.full((8, 8, 3), 255, np.uint8)
    expected[:4], expected[4:6] = (200, 10, 10), 127
    Image.fromarray(pixels).save(tmp_path / "rgba.png")
    Image.fromarray(pixels).quantize(8).save(tmp_path / "palette.png")
    grey = Image.fromarray(pixels).convert("LA")
    grey.save(tmp_path / "grey.png")
    for name in ("rgba.png", "palette.png"):
        assert np.abs(read(tmp_path / name).astype(int) - expected).max() <= 2, name
    assert (read(tmp_path / "grey.png")[6:] == 255).all()


def test_a_colour_that_stands_for_transparent_is_white(tmp_path):
    Image.new("RGB", (4, 4), (0, 255, 0)).save(tmp_path / "a.png", transparency=(0, 255, 0))
    assert (read(tmp_path / "a.png") == 255).all()


def test_cmyk_has_the_colours_of_print(tmp_path):
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[:8, :, 0] = 255  # cyan
    pixels[8:, :, 3] = 255  # black
    Image.fromarray(pixels, "CMYK").save(tmp_path / "a.tif")
    found = read(tmp_path / "a.tif")
    assert (found[0, 0] == (0, 255, 255)).all()
    assert (found[-1, 0] == 0).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright(tmp_path, orientation):
    """The truth: Pillow's own operation."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 9, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "a.png", exif=exif)
    from PIL import ImageOps

    with Image.open(tmp_path / "a.png") as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened))
    np.testing.assert_array_equal(read(tmp_path / "a.png"), expected)


def test_metadata_that_cannot_be_read_turn_nothing(tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 9, 3), np.uint8))
    picture.save(tmp_path / "a.png", exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff")
    np.testing.assert_array_equal(read(tmp_path / "a.png"), np.asarray(picture))


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path):
    head = b"P6 20000 20000 255\n"
    (tmp_path / "a.ppm").write_bytes(head + bytes(100))
    with pytest.raises(MediaError, match=r"400000000 pixels"):
        read(tmp_path / "a.ppm")
