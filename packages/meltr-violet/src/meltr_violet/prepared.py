"""VIOLET's prepared files as a data set (draft of the signatures)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from meltr.data.corpus import Corpus
from meltr.data.frames import FrameSource
from meltr_violet.codes import CodeSource


@dataclass(frozen=True)
class Prepared:
    """A data set in prepared files.

    Args:
        corpus: Its examples; `Corpus.media` is empty.
        frames: Its frames, by the key of the video.
        codes: Its visual codes; None where there is no such file.
        used: Role -> file that was read: ``frames``, ``codes``, ``text``, ``train``, ``test``.
    """

    corpus: Corpus
    frames: FrameSource
    codes: CodeSource | None
    used: dict[str, Path]

    def text(self) -> str:
        """Return which files were read, in one line."""
        return ", ".join(str(path) for path in self.used.values())


def find(dataset: str, task: str, root: Path | None, *, allow_missing: bool = False) -> Prepared | None:
    """Return the prepared files below `root`; None where there are none."""
    raise NotImplementedError


def find_codes(dataset: str, root: Path | None) -> CodeSource | None:
    """Return the prepared visual codes below `root` alone, to go with published videos; None where there are none."""
    raise NotImplementedError


def expected(dataset: str, task: str) -> str:
    """Return which prepared files go where, a line each; empty where there are none for `dataset` and `task`."""
    raise NotImplementedError
