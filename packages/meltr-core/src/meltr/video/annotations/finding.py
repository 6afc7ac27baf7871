"""Find the files of videos and images by listing each folder once, without a check per file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from meltr.file_search import endings_of, files_below

SUFFIXES = (
    ".mp4", ".avi", ".webm", ".mkv", ".mov", ".gif", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ts", ".ogv"
)  # fmt: skip
"""Video file extensions, in order of preference if a video exists in several formats."""


def index_by_stem(root: Path, folders: Iterable[str]) -> dict[str, Path]:
    """Return name without extension -> file, for all videos in `folders` below `root`.

    If a name occurs more than once, the earlier folder wins, then the earlier entry of `SUFFIXES`, then the path that
    sorts first.

    Args:
        root: Folder of the data set.
        folders: Folders below the root, searched at any depth; ``.``: the root itself, without its subfolders. Missing
            folders are skipped.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        best: dict[str, tuple[int, Path]] = {}
        for path in files_below(root / folder, deep=folder != "."):
            stem, suffix = os.path.splitext(path.name)
            if suffix.lower() in SUFFIXES:
                rank = (SUFFIXES.index(suffix.lower()), path)
                best[stem] = min(best.get(stem, rank), rank)
        found.update({stem: path for stem, (_, path) in best.items() if stem not in found})
    return found


def match_stems(
    keys: Iterable[str], index: Mapping[str, Path], stems: Mapping[str, tuple[str, ...]]
) -> dict[str, Path]:
    """Return key -> file for the keys that have a file.

    Args:
        keys: Names of videos.
        index: The result of `index_by_stem`.
        stems: Key -> names that its file may have; a key without an entry has only its own name.
    """
    found = {}
    for key in keys:
        path = next((index[stem] for stem in stems.get(key, (key,)) if stem in index), None)
        if path is not None:
            found[key] = path
    return found


def other_endings(root: Path, folders: Iterable[str], keys: Iterable[str]) -> str:
    """Return a sentence about files that are named like missing videos, with endings that do not count; else "".

    Args:
        root: Folder of the data set.
        folders: Folders below the root, as for `index_by_stem`.
        keys: Names of the missing videos.
    """
    wanted = frozenset(keys)
    there = (path for folder in folders for path in files_below(root / folder, deep=folder != "."))
    found = endings_of((path for path in dict.fromkeys(there) if path.stem in wanted), SUFFIXES)
    return f"{found} of these names are there; known endings: {' '.join(SUFFIXES)}." if found else ""


def existing(paths: Mapping[str, Path]) -> dict[str, Path]:
    """Return the entries of `paths` (key -> path) that are files; every folder is listed once."""
    listed: dict[Path, frozenset[str]] = {}
    for path in paths.values():
        if path.parent not in listed:
            listed[path.parent] = _names(path.parent)
    return {key: path for key, path in paths.items() if path.name in listed[path.parent]}


def _names(folder: Path) -> frozenset[str]:
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if entry.is_file())
    except OSError:
        return frozenset()
