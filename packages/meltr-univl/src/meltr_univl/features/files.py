"""Read features from a folder with one ``.npy`` per video, from UniVL's pickles, or from ``.npz`` archives.

This module does not import torch.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from meltr.data.safe_pickle import ArraySpan, index_pickle
from meltr.errors import UserError
from meltr.file_search import files_below
from meltr.limits import Npz, UnreadableError, npy_array
from meltr.video.annotations.finding import SUFFIXES
from meltr_univl.features.reading import MAKE, FeatureRecord, Features, FeatureSource, checked, read_record

ENDINGS = (*SUFFIXES, ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".npy")
"""Endings that a key may have, and that the name of its features lacks."""

SHOWN = 3
"""Maximum number of names in a message."""


def open_features(path: Path, *, extractor: str | None = None, rate: float | None = None) -> FeatureSource:
    """Open the features in a folder, a ``.pickle`` or ``.pkl``, or a ``.npz``.

    Args:
        path: The folder or file.
        extractor: Name of their extractor, used if the features do not say.
        rate: Vectors per second, used if the features do not say.

    Raises:
        UserError: If there are no features at `path`, or they are damaged.
    """
    if path.is_dir():
        return FeatureFolder(path, extractor=extractor, rate=rate)
    if not path.exists():
        raise UserError(
            f"There are no features at {path}.", f"Make them with `{MAKE}`, or give another path: --set features=PATH."
        )
    kinds: dict[str, type[FeaturePickle | FeatureArchive]]
    kinds = {".pickle": FeaturePickle, ".pkl": FeaturePickle, ".npz": FeatureArchive}
    if path.suffix not in kinds:
        raise UserError(
            f"{path} is not a file of features: it ends in {path.suffix!r}.",
            f"Give a folder of .npy files, or a file that ends in {', '.join(kinds)}.",
        )
    return kinds[path.suffix](path, extractor=extractor, rate=rate)


def stem(key: str) -> str:
    """Return the name of a key's features: the key without the ending of a video or picture."""
    base, ending = os.path.splitext(key)
    return base if ending.lower() in ENDINGS else key


class Names:
    """Find the name of the features for the key of a video.

    The features of ``clips/a.mp4`` are named ``clips/a.mp4`` or ``clips/a``, or are the only ones whose path ends in
    ``a``.

    Args:
        names: Names of all features.
        where: Folder or file, for messages.
    """

    def __init__(self, names: Iterable[str], where: Path) -> None:
        self._where = where
        self._names = dict.fromkeys(names)
        self._short: dict[str, list[str]] = {}
        for name in self._names:
            self._short.setdefault(name.rpartition("/")[2], []).append(name)

    def __len__(self) -> int:
        """Names."""
        return len(self._names)

    def find(self, key: str) -> str | None:
        """Return the name for `key`; None if there is none.

        Raises:
            UserError: If `key` has no exact name and several names end in it.
        """
        for name in (key, stem(key)):
            if name in self._names:
                return name
        fitting = self._short.get(stem(key).rpartition("/")[2], [])
        if len(fitting) > 1:
            several = ", ".join(sorted(fitting)[:SHOWN])
            raise UserError(
                f"{self._where} holds {len(fitting)} videos that may be {key!r}: {several}.",
                "Name the features by the path of the video, without its ending.",
            )
        return fitting[0] if fitting else None

    def require(self, key: str) -> str:
        """Return the name for `key`; raise a KeyError if there is none."""
        name = self.find(key)
        if name is None:
            raise KeyError(key)
        return name


class FeatureFolder:
    """A folder with one ``.npy`` per video, at any depth. Its ``features.json`` says how they were made.

    Args:
        path: The folder.
        extractor: Name of the extractor, used if the folder does not say.
        rate: Vectors per second, used if the folder does not say.

    Raises:
        UserError: If the folder holds no features, or they are damaged.
    """

    def __init__(self, path: Path, *, extractor: str | None = None, rate: float | None = None) -> None:
        self.path = path
        self._files = dict(_npy_files(path))
        if not self._files:
            raise UserError(
                f"{path} holds no .npy file.", f"It needs one file per video, (frames, width); make them with `{MAKE}`."
            )
        self._names = Names(self._files, path)
        record = read_record(path)
        if record is None:
            record = FeatureRecord(_width(_load(self._files[min(self._files)]), path), extractor, rate)
        self.record = record

    def __contains__(self, key: object) -> bool:
        """Return True if there are features for `key`."""
        return isinstance(key, str) and self.file(key) is not None

    def __len__(self) -> int:
        """Files."""
        return len(self._files)

    def file(self, key: str) -> Path | None:
        """Return the file of `key`; None if there is none. Raise a UserError if several files match."""
        name = self._names.find(key)
        return None if name is None else self._files[name]

    def features(self, key: str) -> Features:
        """Return the features of `key`, (F, D); raise a KeyError if there are none, a UserError if they are damaged."""
        file = self._files[self._names.require(key)]
        return checked(_load(file), str(file), self.record.width)


class FeaturePickle:
    """UniVL's ``*_videos_features.pickle``: a dict from key to array. An array is read when it is needed.

    Args:
        path: The file.
        extractor: Name of the extractor; None: unknown.
        rate: Vectors per second; None: unknown.

    Raises:
        UserError: If the file is damaged, is not such a pickle, or contains anything but arrays.
    """

    def __init__(self, path: Path, *, extractor: str | None = None, rate: float | None = None) -> None:
        self.path = path
        content = index_pickle(path)
        arrays = isinstance(content, dict) and all(
            isinstance(each, ArraySpan | np.ndarray) for each in content.values()
        )
        if not arrays or not content:
            raise UserError(
                f"{path} holds {_contents(content)} instead of a dict from videos to arrays of features.",
                "Get UniVL's features again from its official source.",
            )
        self._arrays: dict[str, Any] = {str(key): value for key, value in content.items()}
        self._names = Names(self._arrays, path)
        self._content: mmap.mmap | None = None
        full = next((each for each in self._arrays.values() if len(each.shape) == 2 and each.shape[0]), None)
        self.record = FeatureRecord(_width(full, path), extractor, rate)

    def __contains__(self, key: object) -> bool:
        """Return True if there are features for `key`."""
        return isinstance(key, str) and self._names.find(key) is not None

    def __len__(self) -> int:
        """Videos."""
        return len(self._arrays)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the open file, which another process opens again."""
        return {**self.__dict__, "_content": None}

    def features(self, key: str) -> Features:
        """Return the features of `key`, (F, D); raise a KeyError if there are none, a UserError if they are damaged."""
        name = self._names.require(key)
        array, where = self._arrays[name], f"{self.path}, {name!r},"
        if isinstance(array, ArraySpan):
            if self._content is None:
                with self.path.open("rb") as stream:
                    self._content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            try:
                array = array.read(self._content)
            except ValueError as error:
                raise UserError(f"{where} is damaged: {error}.", "Get the file again.") from error
        return checked(array, where, self.record.width)


class FeatureArchive:
    """A ``.npz`` with one array per video. An array is read when it is needed.

    Args:
        path: The file.
        extractor: Name of the extractor; None: unknown.
        rate: Vectors per second; None: unknown.

    Raises:
        UserError: If the file is damaged or empty.
    """

    def __init__(self, path: Path, *, extractor: str | None = None, rate: float | None = None) -> None:
        self.path = path
        self._archive: Npz | None = None
        keys = list(self._open())
        if not keys:
            raise UserError(f"{path} holds no arrays.", "It needs one per video, (frames, width).")
        self._names = Names(keys, path)
        self.record = FeatureRecord(_width(self._read(keys[0]), path), extractor, rate)

    def __contains__(self, key: object) -> bool:
        """Return True if there are features for `key`."""
        return isinstance(key, str) and self._names.find(key) is not None

    def __len__(self) -> int:
        """Videos."""
        return len(self._names)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the open file, which another process opens again."""
        return {**self.__dict__, "_archive": None}

    def features(self, key: str) -> Features:
        """Return the features of `key`, (F, D); raise a KeyError if there are none, a UserError if they are damaged."""
        name = self._names.require(key)
        return checked(self._read(name), f"{self.path}, {name!r},", self.record.width)

    def _open(self) -> Npz:
        if self._archive is None:
            try:
                self._archive = Npz(self.path)
            except UnreadableError as error:
                raise _damaged(error) from error
        return self._archive

    def _read(self, name: str) -> Any:
        try:
            return self._open().array(name)
        except UnreadableError as error:
            raise _damaged(error) from error


def _npy_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the path below `folder` without its ending, and the file."""
    for file in files_below(folder):
        if file.name.endswith(".npy"):
            yield file.relative_to(folder).as_posix().removesuffix(".npy"), file


def _load(file: Path) -> Any:
    try:
        return npy_array(file)
    except UnreadableError as error:
        raise _damaged(error) from error


def _width(array: Any, where: Path) -> int:
    shape: tuple[int, ...] = () if array is None else array.shape
    if len(shape) != 2:
        raise UserError(
            f"{where} holds an array of shape {shape}; features have shape (frames, width).",
            "Store one vector per row; a single vector is an array with one row.",
        )
    return int(shape[1])


def _damaged(error: UnreadableError) -> UserError:
    return UserError(error.message, f"Make the features again: {MAKE}.")


def _contents(content: Any) -> str:
    if not isinstance(content, dict):
        return type(content).__name__
    other = next((type(each).__name__ for each in content.values() if not hasattr(each, "dtype")), None)
    return "an empty dict" if other is None else f"a dict with {other}"
