"""Contact sheets: which files are on them, where, and what becomes of bad input. Also which files count as media."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from meltr.errors import UserError
from meltr.video.contact_sheet import COLUMNS, HEIGHT, LINE, MARGIN, WIDTH, Tile, draw_sheet, tiles_of, write_sheet
from meltr.video.frames.media import MediaError
from meltr.video.frames.media_files import decodable, kind, list_media, middle_frame
from video_files import number_of, picture, write_video

pytest.importorskip("av")
Image = pytest.importorskip("PIL.Image")

COLOURS = ("red", "lime", "blue", "yellow", "aqua", "fuchsia", "maroon")


@pytest.fixture
def images(tmp_path) -> list[Path]:
    """Seven images of one colour each, of the shape of a sheet's boxes, but larger."""
    paths = [tmp_path / f"{colour}.png" for colour in COLOURS]
    for path, colour in zip(paths, COLOURS, strict=True):
        Image.new("RGB", (2 * WIDTH, 2 * HEIGHT), colour).save(path)
    return paths


def box(sheet: np.ndarray, number: int, top: int = 0) -> np.ndarray:
    """Return the pixels of the picture of tile `number`, counted row by row."""
    x = MARGIN + number % COLUMNS * (WIDTH + MARGIN)
    y = top + MARGIN + number // COLUMNS * (HEIGHT + 2 * LINE + 2 * MARGIN)
    return sheet[y : y + HEIGHT, x : x + WIDTH]


def test_pictures_stand_in_the_order_of_the_tiles(images):
    sheet = np.asarray(draw_sheet([Tile(path, "") for path in images]))
    for number, colour in enumerate(COLOURS):
        assert (box(sheet, number) == Image.new("RGB", (1, 1), colour).getpixel((0, 0))).all()
    inside = sum(box(sheet, number)[..., 0].size for number in range(len(images)))
    framed = (sheet != 255).any(-1).sum() - sum((box(sheet, n) != 255).any(-1).sum() for n in range(len(images)))
    assert 0 < framed < inside / 10, "around the pictures there are only thin frames and text"


def test_a_picture_keeps_its_shape(tmp_path):
    path = tmp_path / "tall.png"
    Image.new("RGB", (100, 300), "red").save(path)
    red = (box(np.asarray(draw_sheet([Tile(path, "")])), 0) == (255, 0, 0)).all(-1)
    assert red.any(0).sum() == HEIGHT / 3
    assert red.any(1).all()
    columns = red.any(0).nonzero()[0]
    assert columns[0] + columns[-1] == WIDTH - 1, "in the middle of its box"


def test_a_video_is_shown_by_its_middle_frame(tmp_path):
    path = write_video(tmp_path / "clip.mp4", 9, first=400)
    assert number_of(middle_frame(path)) == 404
    sheet = np.asarray(draw_sheet([Tile(path, "")]))
    assert number_of(box(sheet, 0)[18:162]) == 404


def test_captions_and_names_stand_below_and_are_cut_to_the_width(images):
    short, long = (np.asarray(draw_sheet([Tile(images[0], text), Tile(images[1], "")])) for text in ("1.", "w" * 400))
    below = MARGIN + HEIGHT + MARGIN // 2
    assert (short[below : below + LINE, MARGIN : MARGIN + 30] < 128).any()
    caption = (long[below : below + LINE] < 128).any((0, 2)).nonzero()[0]
    assert MARGIN + 0.9 * WIDTH < caption.max() <= MARGIN + WIDTH
    name = (short[below + LINE : below + 2 * LINE] < 200).any((0, 2))
    assert name[MARGIN : MARGIN + WIDTH].any()
    assert name[2 * MARGIN + WIDTH :].any()


def test_a_title_stands_above_and_moves_the_rest_down(images):
    plain = np.asarray(draw_sheet([Tile(images[0], "1.")]))
    titled = np.asarray(draw_sheet([Tile(images[0], "1.")], title="a red thing"))
    top = len(titled) - len(plain)
    assert top == LINE + MARGIN
    assert (titled[: top + MARGIN] < 128).any()
    np.testing.assert_array_equal(titled[top + MARGIN - 2 :], plain[MARGIN - 2 :])


def test_tiles_are_numbered_files_with_the_other_values():
    rows = [
        {"video": Path("b/x.mp4"), "score": 0.98765},
        {"image": "y.png", "label": "cat", "probability": 0.5},
        {"image": "y.png", "label": "dog", "probability": 0.1},
        {"score": 3, "video": "z.mp4"},
    ]
    assert tiles_of(rows) == (
        Tile(Path("b/x.mp4"), "1.  0.988"),
        Tile(Path("y.png"), "2.  cat  0.5"),
        Tile(Path("z.mp4"), "3.  3"),
    )
    with pytest.raises(UserError, match="nothing to draw"):
        tiles_of([{"answer": "red"}])


def test_the_file_is_a_png_and_nothing_lies_beside_it(images, tmp_path):
    path = tmp_path / "new" / "sheet.png"
    write_sheet(path, [Tile(images[0], "1.")], title="t")
    with Image.open(path) as written:
        assert written.format == "PNG"
        np.testing.assert_array_equal(np.asarray(written), np.asarray(draw_sheet([Tile(images[0], "1.")], title="t")))
    assert list(path.parent.iterdir()) == [path]


def test_what_cannot_be_written_or_drawn(images, tmp_path):
    tiles = [Tile(images[0], "")]
    with pytest.raises(UserError, match="Cannot write"):
        write_sheet(images[1] / "sheet.png", tiles)
    (tmp_path / "sheet.png").mkdir()
    with pytest.raises(UserError, match="Cannot write"):
        write_sheet(tmp_path / "sheet.png", tiles)
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(MediaError, match=r"gone\.png"):
        write_sheet(tmp_path / "other.png", [Tile(tmp_path / "gone.png", "")])
    assert not (tmp_path / "other.png").exists()


def test_which_files_of_a_folder_count(tmp_path):
    for name in ("b.mp4", "a.PNG", "c.gif", ".hidden.mp4", "notes.txt", "d"):
        (tmp_path / name).touch()
    (tmp_path / "folder.mp4").mkdir()
    assert [path.name for path in list_media(tmp_path)] == ["a.PNG", "b.mp4", "c.gif"]
    assert [kind(path) for path in list_media(tmp_path)] == ["image", "video", "video"]
    with pytest.raises(UserError, match="holds no video"):
        list_media(tmp_path / "folder.mp4")
    with pytest.raises(UserError, match="Cannot read the folder"):
        list_media(tmp_path / "gone")


@pytest.mark.parametrize("workers", [0, 1])
def test_files_that_cannot_be_decoded_are_told_apart(tmp_path, workers):
    good, still = write_video(tmp_path / "good.mp4", 3), tmp_path / "still.png"
    Image.fromarray(picture(1)).save(still)
    page, empty = tmp_path / "page.mp4", tmp_path / "empty.png"
    page.write_text("<html>")
    empty.touch()
    calls: list[tuple[int, int, int]] = []
    paths = (page, good, empty, still)
    kept, broken = decodable(paths, workers=workers, progress=lambda *counts: calls.append(counts))
    assert kept == (good, still)
    assert list(broken) == [page, empty]
    assert all(str(path) in problem for path, problem in broken.items())
    assert calls == [(1, 4, 1), (2, 4, 1), (3, 4, 2), (4, 4, 2)]
    with pytest.raises(UserError, match="None of 2 files can be decoded") as error:
        decodable((page, empty), workers=0, progress=lambda *_: None)
    assert "page.mp4" in str(error.value)
