"""Search of folders: hidden files and folders do not count, and a circle of links ends."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from meltr.errors import UserError


def files_below(folder: Path, *, deep: bool = True) -> Iterator[Path]:
    """Yield the files below a folder, sorted within each folder; links to folders are followed, each folder once.

    Hidden files and folders (``.ipynb_checkpoints``, ``._0.png``) are skipped, and so is ``__MACOSX``, which holds no
    content. A link to a folder that contains the link is a circle and not followed: it would bring files that belong
    elsewhere, such as those of another class.

    Args:
        folder: The folder; if it does not exist, there are no files.
        deep: Search its folders too.

    Raises:
        UserError: If a folder cannot be read, or a name is not UTF-8, which no result could be written with.
    """
    seen: set[tuple[int, int]] = set()
    for parent, subfolders, names in os.walk(folder, followlinks=True, onerror=_refuse):
        if not _first_visit(parent, seen):
            subfolders.clear()
            continue
        wanted = sorted(name for name in subfolders if deep and is_visible(name))
        subfolders[:] = [name for name in wanted if not _leads_up(Path(parent, name))]
        for name in (*subfolders, *names):
            check_name(Path(parent, name))
        yield from (Path(parent, name) for name in sorted(names) if is_visible(name))


def is_visible(name: str) -> bool:
    """Tell whether a file or folder of this name counts as content."""
    return not name.startswith(".") and name != "__MACOSX"


def endings_of(files: Iterable[Path], known: Iterable[str], *, most: int = 3) -> str:
    """Return a sentence part about files with other endings, such as ``6 files .m4v``; empty if there are none.

    Args:
        files: The files.
        known: Endings that count, in lower case.
        most: Maximum number of endings that are named.
    """
    counts = Counter(file.suffix.lower() for file in files)
    others = [(ending, count) for ending, count in counts.most_common() if ending and ending not in set(known)]
    return ", ".join(f"{count:,} file{'s' if count > 1 else ''} {ending}" for ending, count in others[:most])


def check_name(path: Path) -> None:
    """Check that the name of a file or folder is UTF-8.

    Raises:
        UserError: If it is not.
    """
    try:
        path.name.encode()
    except UnicodeEncodeError:
        shown = path.name.encode("utf-8", "backslashreplace").decode()
        raise UserError(f"A name in {path.parent} is not UTF-8: {shown}.", "Rename it.") from None


def _refuse(error: OSError) -> None:
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise UserError(f"Cannot read the folder {error.filename}: {error.strerror}.", "Check its permissions.")


def _leads_up(folder: Path) -> bool:
    """Tell whether a link leads to a folder that contains the link."""
    if not folder.is_symlink():
        return False
    target = os.path.realpath(folder)
    return os.path.commonpath([target, os.path.realpath(folder.parent)]) == target


def _first_visit(folder: str, seen: set[tuple[int, int]]) -> bool:
    try:
        state = os.stat(folder)
    except OSError:
        return False
    place = (state.st_dev, state.st_ino)
    new = place not in seen
    seen.add(place)
    return new
