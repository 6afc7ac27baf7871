"""Pictures of the videos and images that predictions name, small enough to be part of a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path

from meltr.errors import MeltrError
from meltr.folders.run_folder import RunFolder
from meltr.specs import RunSpec
from meltr.video.annotations import READERS
from meltr.video.corpora import open_corpus
from meltr.video.frames.media import require
from meltr.video.frames.media_files import middle_frame

SIZE = (320, 240)
"""Box that a picture fits in, in pixels."""

QUALITY = 80


class Stills:
    """Finds and decodes the pictures of a report; what cannot be found or decoded has no picture.

    A run folder may come from somebody else: only files of the data set are shown, never another file that it names.

    Args:
        data_root: Folder of the data set, if it has moved.
    """

    def __init__(self, data_root: Path | None = None) -> None:
        self.data_root = data_root
        self._media: dict[Path, Mapping[str, Path]] = {}

    def __call__(self, run: Path, name: str) -> str | None:
        """Return the picture as a data URI; None if there is none.

        Args:
            run: Folder of the run whose predictions name it.
            name: Key of a video, or an image's file below the folder of the data set.
        """
        try:
            path = self._path(run, name)
            return None if path is None else _picture(path)
        except (MeltrError, OSError, ValueError):
            return None

    def _path(self, run: Path, name: str) -> Path | None:
        spec = RunFolder(run).read_spec()
        if self.data_root is not None:
            spec = spec.model_copy(update={"data_root": self.data_root})
        if run not in self._media:
            self._media[run] = _media_of(spec)
        if name in self._media[run]:
            return self._media[run][name]
        if spec.data_root is None:
            return None
        root = spec.data_root.resolve()
        path = (root / name).resolve()
        return path if path.is_relative_to(root) and path.is_file() else None


def _media_of(spec: RunSpec) -> Mapping[str, Path]:
    """Return the files of a data set of videos; none if it is another kind, or its files are gone."""
    if spec.dataset not in READERS:
        return {}
    try:
        return open_corpus(spec, quiet=True).media
    except MeltrError:
        return {}


def _picture(path: Path) -> str:
    picture = require("PIL.Image").fromarray(middle_frame(path))
    picture.thumbnail(SIZE)
    content = io.BytesIO()
    picture.save(content, format="JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
