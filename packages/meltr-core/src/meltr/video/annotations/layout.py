"""Description of a data set on disk: which file goes where, and the published number of items."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from meltr.errors import UserError
from meltr.video.annotations.finding import SUFFIXES


@dataclass(frozen=True)
class AnnotationFile:
    """One file of annotations.

    Args:
        role: Name that the reader uses for it.
        names: Possible file names, the usual one first; the extension determines the format.
        holds: Its content, in a few words.
        needed: False if the data set can be read without it.
    """

    role: str
    names: tuple[str, ...]
    holds: str
    needed: bool = True

    def description(self) -> str:
        """Return its content, whether it is optional, and its other names."""
        others = f"; or {' or '.join(self.names[1:])}" if self.names[1:] else ""
        return f"{self.holds}{'' if self.needed else ' (optional)'}{others}"


@dataclass(frozen=True)
class MediaFolder:
    """Location of the videos or images.

    Args:
        folders: Folders below the root that may hold them, the usual one first; ``.``: the root itself, without its
            subfolders. The other folders are searched at any depth.
        example: Name of one of the files.
        published: Published number of files; None: unknown.
    """

    folders: tuple[str, ...]
    example: str
    published: int | None = None


@dataclass(frozen=True)
class DatasetLayout:
    """DatasetLayout of a published data set.

    Args:
        dataset: Its name.
        summary: One line for ``meltr list``.
        tasks: Tasks that it has annotations for.
        files: Its annotations.
        media: Its videos or images; None if the annotations hold their paths.
        unit: Plural noun for its items.
        published: Split -> published number of items.
        homepage: Where to download it.
        folders: Folders below the root in which annotations may lie, the usual one first.
    """

    dataset: str
    summary: str
    tasks: tuple[str, ...]
    files: tuple[AnnotationFile, ...]
    media: MediaFolder | None
    unit: str = "items"
    published: Mapping[str, int] = field(default_factory=dict)
    homepage: str | None = None
    folders: tuple[str, ...] = (".",)

    def text(self) -> str:
        """Return which file goes where, one line each."""
        rows = [(each.names[0], each.description()) for each in self.files]
        if self.media is not None:
            count = f"{self.media.published:,} " if self.media.published else ""
            rows.append(
                (f"{self.media.folders[0]}/", f"{count}files such as {self.media.example} ({' '.join(SUFFIXES)})")
            )
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name.ljust(width)}  {holds}" for name, holds in rows)

    def find(self, root: Path) -> dict[str, Path]:
        """Return role -> path of the annotation files below `root`; if `root` is a file, of that file."""
        if root.is_file():
            return {self.files[0].role: root}
        return {each.role: path for each in self.files if (path := self._path(root, each)) is not None}

    def _path(self, root: Path, file: AnnotationFile) -> Path | None:
        candidates = (root / folder / name for name in file.names for folder in self.folders)
        return next((path for path in candidates if path.is_file()), None)

    def places(self, root: Path | None = None) -> str:
        """Return which file goes where below `root`, and where to download the files."""
        where = str(root) if root is not None else "one folder, which --data-root names"
        lines = [f"These belong in {where}:", *(f"  {line}" for line in self.text().splitlines())]
        return "\n".join([*lines, f"Get them from {self.homepage}"] if self.homepage else lines)

    def media_place(self, root: Path) -> str:
        """Return where missing videos belong."""
        if self.media is None:
            return "The annotations say where each file is, relative to themselves."
        place = f"They belong in {root / self.media.folders[0]}, as {self.media.example}."
        return f"{place} Get them from {self.homepage}" if self.homepage else place

    def advice(self, root: Path | None = None) -> str:
        """Return what to do if files are missing: which file goes where, how to check, and how to run without files."""
        check = f"meltr data check --dataset {self.dataset} --data-root {root if root is not None else 'DIR'}"
        return f"{self.places(root)}\n`{check}` lists what is still missing. To run without any files: --sample."


def require_root(layout: DatasetLayout, root: Path | None) -> Path:
    """Return `root`; UserError if it was not given, does not exist, or is a file although several are needed."""
    if root is None:
        raise UserError(f"{layout.dataset} needs its files, and --data-root was not given.", layout.advice())
    if not root.exists():
        raise UserError(f"{layout.dataset}: {root} does not exist.", layout.advice(root))
    if root.is_file() and len(layout.files) > 1:
        raise UserError(f"{layout.dataset}: {root} is a file, not a folder.", layout.advice(root.parent))
    return root


def require_files(layout: DatasetLayout, root: Path) -> dict[str, Path]:
    """Return role -> path of the annotation files; UserError that lists the required files that are missing."""
    found = layout.find(root)
    missing = [each for each in layout.files if each.needed and each.role not in found]
    if missing:
        listed = "\n".join(f"  {each.names[0]}: {each.description()}" for each in missing)
        needed = sum(each.needed for each in layout.files)
        raise UserError(
            f"{layout.dataset}: {len(missing)} of {needed} annotation files are not in {root}:\n{listed}",
            layout.advice(root),
        )
    return found
