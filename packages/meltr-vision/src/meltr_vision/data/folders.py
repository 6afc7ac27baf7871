"""Read image folders: ``train/<class>/*``, and ``val/`` and ``test/`` if they exist."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from meltr.errors import UserError
from meltr.file_search import check_name, endings_of, files_below, is_visible
from meltr_vision.data.images import ImageSet, Splits
from meltr_vision.data.layouts import how_to_get
from meltr_vision.data.pictures import NOT_READ, SUFFIXES, read_square

OTHER_NAMES = {"val": ("valid", "validation", "dev"), "test": ("testing",)}
"""Folders that are meant for a split, but have another name than it needs."""

SHOWN = 5
"""Maximum number of files in a message."""


def read_image_folder(root: Path | None, *, size: int, skipped: list[str] | None = None) -> Splits:
    """Read all images below `root` as RGB, with the shorter side resized to `size`, and crop the centre square.

    Args:
        root: Folder with ``train/``, and optionally ``val/`` and ``test/``.
        size: Side of the squares in pixels.
        skipped: Gets the name of each image that cannot be read, with the reason, and the others are read; None: such
            an image is an error.

    Raises:
        UserError: If folders are missing or empty, classes differ between splits, images cannot be read (with their
            number and the first ones), or the images would not fit into memory.
    """
    hint = how_to_get("image_folder", fetchable=False)
    if root is None:
        raise UserError("image_folder needs your images, but --data-root was not given.", hint)
    if not (root / "train").is_dir():
        state = "has no folder train/" if root.is_dir() else "does not exist"
        raise UserError(f"{root} {state}.", hint)
    _check_splits(root)
    names = tuple(sorted(entry.name for entry in _classes(root / "train")))
    if len(names) < 2:
        raise UserError(f"{root / 'train'} has {len(names)} class folders; at least two are needed.", hint)
    listed = {part: _list(root / part, names) for part in ("train", "val", "test") if (root / part).is_dir()}
    there = [names[label] for file, label in listed["train"] if file.suffix.lower() in SUFFIXES]
    _check_classes(root / "train", names, there)
    _check_memory(sum(map(len, listed.values())), size)
    found = {part: _read(root, files, names, size=size, skipped=skipped) for part, files in listed.items() if files}
    if skipped:
        _check_classes(root / "train", names, [names[label] for label in found["train"].labels])
    return Splits(train=found["train"], validation=found.get("val"), test=found.get("test"))


def _entries(folder: Path) -> list[Path]:
    try:
        found = sorted(entry for entry in folder.iterdir() if is_visible(entry.name))
    except OSError as error:
        raise UserError(f"Cannot read the folder {folder}: {error.strerror}.", "Check its permissions.") from error
    for entry in found:
        check_name(entry)
    return found


def _classes(folder: Path) -> list[Path]:
    """Return the folders of classes.

    Raises:
        UserError: If a link leads nowhere, or two names look the same.
    """
    alike: dict[str, str] = {}
    found = _entries(folder)
    for entry in found:
        if entry.is_symlink() and not entry.exists():
            raise UserError(f"{entry} is a link that leads nowhere.", "Mend or remove it.")
        if entry.is_dir():
            other = alike.setdefault(_as_seen(entry.name), entry.name)
            if other != entry.name:
                raise UserError(
                    f"{folder} has two classes whose names look the same: {other!a} and {entry.name!a}.",
                    "Put their images into one folder.",
                )
    return [entry for entry in found if entry.is_dir()]


def _as_seen(name: str) -> str:
    """Return a name as it looks: accents can be written in two ways, and spaces at the end are not seen."""
    return unicodedata.normalize("NFC", name).strip()


def _check_splits(root: Path) -> None:
    """Raise a UserError if a split lies under another name than the one that is read."""
    for part in ("val", "test"):
        other = next((name for name in OTHER_NAMES[part] if (root / name).is_dir()), None)
        if other is not None and not (root / part).exists():
            raise UserError(f"{root} has a folder {other}/, which is not read.", f"Rename it to {part}/, or remove it.")
        if (root / part).exists() and not (root / part).is_dir():
            raise UserError(f"{root / part} is not a folder.", "Remove it, or put a folder for each class into one.")


def _check_classes(folder: Path, names: Sequence[str], present: Sequence[str]) -> None:
    """Raise a UserError if a class has no image; it names files with other endings."""
    empty = sorted(set(names) - set(present))
    if not empty:
        return
    others = endings_of((file for name in empty for file in files_below(folder / name)), SUFFIXES)
    what = (
        "holds no images" if len(empty) == len(names) else f"has classes without an image: {', '.join(empty[:SHOWN])}"
    )
    raise UserError(
        f"{folder} {what}{f' ({others})' if others else ''}.",
        f"Endings of images: {' '.join(sorted(SUFFIXES))}. Remove or fill the folders of empty classes.",
    )


def _list(folder: Path, names: Sequence[str]) -> list[tuple[Path, int]]:
    """Return (file, label) of every image below the class folders of `folder`, sorted."""
    label = {name: index for index, name in enumerate(names)}
    classes = _classes(folder)
    known = {_as_seen(name): name for name in names}
    for name in (entry.name for entry in classes if entry.name not in label):
        if _as_seen(name) in known:
            raise UserError(
                f"{folder} has a class {name!a}, which looks like {known[_as_seen(name)]!a} of train/.",
                "Give it the same name: letters with accents can be written in two ways (Unicode NFC and NFD).",
            )
    unknown = [entry.name for entry in classes if entry.name not in label]
    if unknown:
        raise UserError(
            f"{folder} has classes that train/ lacks: {', '.join(unknown[:SHOWN])} ({len(unknown)} in all).",
            f"Classes of train/: {', '.join(names[:20])}{' ...' if len(names) > 20 else ''}. Rename or remove them.",
        )
    return [
        (file, label[entry.name])
        for entry in classes
        for file in sorted(files_below(entry))
        if file.suffix.lower() in SUFFIXES | NOT_READ
    ]


def _check_memory(count: int, size: int) -> None:
    """Raise a UserError if the images, which stay in memory uncompressed, need more than half of the memory."""
    needed = count * 3 * size * size
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return
    if needed > physical // 2:
        raise UserError(
            f"{count:,} images of {size}x{size} pixels need {needed / 2**30:.1f} GiB in memory, more than half of this "
            f"machine's {physical / 2**30:.1f} GiB.",
            f"Use smaller images, e.g. --set image_size={max(8, size // 2)}, or fewer of them.",
        )


def _read(
    root: Path, files: Sequence[tuple[Path, int]], names: tuple[str, ...], *, size: int, skipped: list[str] | None
) -> ImageSet:
    images = np.empty((len(files), 3, size, size), dtype=np.uint8)
    broken, whole = [], np.ones(len(files), dtype=bool)
    with ThreadPoolExecutor() as pool:
        for index, result in enumerate(pool.map(lambda entry: read_square(entry[0], size), files)):
            if isinstance(result, str):
                broken.append(f"{files[index][0].relative_to(root)} ({result})")
                whole[index] = False
            else:
                images[index] = result
    if broken and (skipped is None or not whole.any()):
        first = "\n".join(f"  {each}" for each in broken[:SHOWN])
        raise UserError(
            f"{len(broken)} of {len(files)} images below {root} cannot be read; the first:\n{first}",
            "Remove or replace them, or skip them with --allow-missing.",
        )
    if broken and skipped is not None:
        skipped.extend(broken)
        images, files = images[whole], [entry for entry, kept in zip(files, whole, strict=True) if kept]
    labels = np.array([label for _, label in files], dtype=np.int64)
    return ImageSet(images, labels, names, tuple(str(file.relative_to(root)) for file, _ in files))
