"""The folder of a new run, and what happens to an earlier run in it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from meltr.errors import UserError
from meltr.folders.run_folder import RunFolder
from meltr.folders.seeds_folder import SeedsFolder
from meltr.specs import RunSpec


def choose_folder(spec: RunSpec, output_dir: Path, name: str | None, *, overwrite: bool) -> Path:
    """Return the folder of a new run; writes nothing.

    Args:
        spec: The run.
        output_dir: The parent folder.
        name: Its name, if the user chose one; None: made from the settings, with a number if that name is taken.
        overwrite: Allow a name that is taken; the earlier run will be deleted.

    Raises:
        UserError: If `name` is taken and not to be overwritten, or is not a plain name.
    """
    if name is not None and (name in ("", ".", "..") or Path(name).name != name):
        raise UserError(f"--name {name!r} is not a plain name", "Choose the parent folder with --output-dir.")
    wanted = _wanted(spec, output_dir, name)
    if overwrite or not wanted.exists():
        return wanted
    if name is not None:
        hint = f"Continue it with: meltr run --resume {wanted}\nOr add --overwrite, or choose another --name."
        raise UserError(f"there is already a run in {wanted}", hint)
    number = 2
    while (free := wanted.with_name(f"{wanted.name}-{number}")).exists():
        number += 1
    return free


def begun_before(spec: RunSpec, output_dir: Path, name: str | None) -> Path | None:
    """Return the folder in which the same run was started and not finished; the newest of several, None if none.

    Args:
        spec: The run.
        output_dir: The parent folder.
        name: Its name, if the user chose one.
    """
    wanted = _wanted(spec, output_dir, name)
    candidates = [wanted] if name is not None else [wanted, *output_dir.glob(f"{wanted.name}-*")]
    found = [path for path in candidates if _described(path) == spec and not RunFolder(path).results.exists()]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


@contextlib.contextmanager
def replacing(path: Path | None) -> Iterator[None]:
    """Move the earlier run in `path` aside while a new one is created there, and delete it once that has started.

    If the new run fails before its first checkpoint (for example because data are missing), the earlier run is
    restored.

    Raises:
        UserError: If `path` is not a run folder.
    """
    if path is None or not path.exists():
        yield
        return
    if not _may_be_replaced(path):
        raise UserError(f"{path} is not a run folder; it is not deleted", "Choose another --name.")
    aside = path.with_name(f".{path.name}.replaced")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)
    try:
        yield
    finally:
        if RunFolder(path).keeps_work:
            shutil.rmtree(aside, ignore_errors=True)
        else:
            shutil.rmtree(path, ignore_errors=True)
            aside.rename(path)


def _wanted(spec: RunSpec, output_dir: Path, name: str | None) -> Path:
    return output_dir / (name or "-".join((spec.backbone, spec.task, spec.dataset, spec.combiner)))


def _described(path: Path) -> RunSpec | None:
    """Return the description of the run in a folder, or of the first of several seeds; None if there is none."""
    seeds = SeedsFolder(path).read()
    if seeds is not None:
        return RunSpec.model_validate(seeds["spec"])
    folder = RunFolder(path)
    return folder.read_spec() if folder.was_started else None


def _may_be_replaced(path: Path) -> bool:
    if path.is_symlink() or not path.is_dir():
        return False
    return not any(path.iterdir()) or RunFolder(path).holds_run or SeedsFolder(path).description.exists()
