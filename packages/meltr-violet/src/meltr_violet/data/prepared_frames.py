"""Read frames from VIOLET's prepared files: JPEG in base64, in a pickle or a table, read in place.

This module does not import torch.
"""

from __future__ import annotations

import base64
import io
import mmap
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from meltr.data.safe_pickle import Span, index_pickle
from meltr.errors import MeltrError, UserError
from meltr.video.annotations.parsing import malformed, read_list
from meltr.video.frames.source import Frames
from meltr.video.frames.stills import opened, rgb

NAME_BYTES = 4096
"""Maximum length of the name at the beginning of a line of a table."""

Place = Span | tuple[Any, ...]
"""Location of a video in the file: its line, or each of its frames (a span of bytes, or the text itself)."""


class PreparedFrames:
    """A `meltr.video.frames.source.FrameSource` on a prepared file of the public repository tsujuifu/pytorch_violet.

    The file is either a pickled dict, name of the video -> list of JPEG files in base64, or a table. A table has one
    line per video: its name and then the same texts, separated by tabs. Only the locations are kept in memory. The
    object can be pickled and survives a fork; each process opens the file when it first reads it.

    Args:
        path: The pickle (``img_msrvtt.pkl``) or the table (``img_msrvtt.tsv``).
        lines: File with the byte offset of each line of the table, one number per line; None: the file ``.lineidx``
            next to the table. Without such a file, the whole table is scanned.

    Raises:
        UserError: If the file cannot be read or has another format.
    """

    def __init__(self, path: Path, lines: Path | None = None) -> None:
        self.path = path.resolve()
        self._map: mmap.mmap | None = None
        if path.suffix == ".tsv":
            beside = path.with_suffix(".lineidx")
            self._places = _lines(self._content(), path, lines or (beside if beside.is_file() else None))
        else:
            self._places = _pictures(path)
        first = next(iter(self._places))
        self.count = len(self._encoded(first))
        for key, place in self._places.items():
            if isinstance(place, tuple) and len(place) != self.count:
                raise malformed(f"{path}, {key}", f"{len(place)} frames, but {first} has {self.count}.")

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for another process, without the open file."""
        return {**self.__dict__, "_map": None}

    def __len__(self) -> int:
        """Return the number of videos in the file."""
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keys in the order of the file."""
        return iter(self._places)

    def __contains__(self, key: object) -> bool:
        """Return True if the file has frames for `key`."""
        return key in self._places

    def frames(self, key: str) -> Frames:
        """Return the frames of `key`, (`count`, H, W, 3).

        Raises:
            KeyError: If `key` is unknown.
            UserError: If a frame is damaged.
        """
        encoded = self._encoded(key)
        if len(encoded) != self.count:
            raise malformed(f"{self.path}, {key}", f"{len(encoded)} frames, but other videos have {self.count}.")
        frames = [self._picture(key, number, raw) for number, raw in enumerate(encoded)]
        shapes = {frame.shape for frame in frames}
        if len(shapes) > 1:
            raise malformed(f"{self.path}, {key}", f"its frames differ in size: {sorted(shapes)}.")
        return np.stack(frames)

    def _picture(self, key: str, number: int, raw: bytes) -> npt.NDArray[np.uint8]:
        try:
            content = base64.b64decode(raw, validate=True)
            with opened(io.BytesIO(content), ("JPEG",)) as picture:
                return np.asarray(rgb(picture))
        except MeltrError:
            raise
        except Exception as error:  # a broken picture can make the decoder raise anything
            where = f"{self.path}, {key}, frame {number}"
            raise malformed(where, f"not a JPEG in base64: {type(error).__name__}: {error} ({len(raw):,} bytes).")

    def _encoded(self, key: str) -> list[bytes]:
        """Return the frames of `key` in base64."""
        place, content = self._places[key], self._content()
        if isinstance(place, Span):
            return place.read(content).rstrip(b"\r\n").split(b"\t")[1:]
        return [each.read(content) if isinstance(each, Span) else each.encode("ascii", "replace") for each in place]

    def _content(self) -> mmap.mmap:
        if self._map is None:
            try:
                with self.path.open("rb") as stream:
                    self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:  # ValueError: an empty file
                reason = getattr(error, "strerror", None) or error
                raise UserError(f"Cannot read {self.path}: {reason}.", "Check the path, or get the file again.")
        return self._map


def _pictures(path: Path) -> dict[str, Place]:
    """Return name -> location of each frame, for a pickle."""
    content = index_pickle(path)
    if not isinstance(content, dict) or not content:
        found = "an empty dict" if content == {} else type(content).__name__
        raise malformed(path, f"it holds {found}, not a dict from names of videos to frames.")
    places: dict[str, Place] = {}
    for key, frames in content.items():
        if not isinstance(key, str):
            raise malformed(path, f"the name of a video is {key!r:.60}, not text.")
        if not isinstance(frames, (list, tuple)) or not frames:
            raise malformed(f"{path}, {key}", f"{type(frames).__name__} instead of a list of frames.")
        wrong = [each for each in frames if not isinstance(each, (str, Span))]
        if wrong:
            raise malformed(f"{path}, {key}", f"{type(wrong[0]).__name__} instead of a JPEG file in base64.")
        places[key] = tuple(frames)
    return places


def _lines(content: mmap.mmap, path: Path, lines: Path | None) -> dict[str, Place]:
    """Return name -> line, for a table."""
    starts = list(_starts(content)) if lines is None else _listed(lines)
    places: dict[str, Place] = {}
    for number, (start, stop) in enumerate(pairwise([*starts, len(content)]), 1):
        where = f"{path}, line {number}" if lines is None else f"{lines}, line {number}"
        if not 0 <= start < stop or (start and content[start - 1 : start] != b"\n"):
            raise malformed(where, f"no line of {path.name} begins at byte {start:,} ({len(content):,} bytes).")
        tab = content.find(b"\t", start, min(stop, start + NAME_BYTES))
        name = content[start:tab].decode("utf-8", "replace")
        if tab <= start:
            raise malformed(where, f"the line at byte {start:,} of {path.name} is not a name, a tab, and frames.")
        if name in places:
            raise malformed(where, f"{name} occurs twice.")
        places[name] = Span(start, stop)
    if not places:
        raise malformed(lines or path, "no lines.")
    return places


def _starts(content: mmap.mmap) -> Iterator[int]:
    start = 0
    while 0 <= start < len(content):
        yield start
        start = content.find(b"\n", start) + 1 or -1


def _listed(lines: Path) -> list[int]:
    starts = []
    for number, word in enumerate(read_list(lines), 1):
        if not word.isdecimal():
            raise malformed(f"{lines}, line {number}", f"{word!r:.60} is not a byte offset.")
        starts.append(int(word))
    return starts
