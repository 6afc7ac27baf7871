"""The folder of a new run, and what happens to an earlier run in it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from meltr.errors import UserError
from meltr.folders.locks import vacant
from meltr.folders.run_folder import RunFolder
from meltr.folders.seeds_folder import SeedsFolder
from meltr.specs import RunSpec


def choose_folder(spec: RunSpec, output_dir: Path, name: str | None, *, overwrite: bool) -> Path:
    """Return the folder of a new run; writes nothing.

    Args:
        spec: The run.
        output_dir: The parent folder.
        name: Its name, if the user chose one; None: made from the settings, with a number if that name is taken.
        overwrite: Allow a name that is taken; the earlier run will be replaced.

    Raises:
        UserError: If `name` is taken and not to be overwritten, or is not a plain name.
    """
    if name is not None and (name in ("", ".", "..") or Path(name).name != name):
        raise UserError(f"--name {name!r} is not a plain name", "Choose the parent folder with --output-dir.")
    wanted = _wanted(spec, output_dir, name)
    if overwrite or _free(wanted):
        return wanted
    if name is not None:
        raise taken(wanted)
    free = wanted.with_name(f"{wanted.name}-2")
    while not _free(free):
        free = next_name(free)
    return free


def next_name(path: Path) -> Path:
    """Return `path` with the next number: ``run-2`` after ``run``, and ``run-3`` after that."""
    found = re.fullmatch(r"(.+)-([0-9]+)", path.name)
    base, number = (found[1], int(found[2])) if found else (path.name, 1)
    return path.with_name(f"{base}-{number + 1}")


def taken(path: Path) -> UserError:
    """Return the error for a folder that holds a run already."""
    hint = f"Continue it with: meltr run --resume {path}\nOr add --overwrite, or choose another --name."
    aside = set_aside(path)
    if aside is not None:
        hint += f"\nThe run that it was to replace is in {aside}; --overwrite brings that back first."
    return UserError(f"there is already a run in {path}", hint)


def set_aside(folder: Path) -> Path | None:
    """Return where the run lies that an ``--overwrite`` of `folder` has put aside; None if there is none."""
    aside = aside_of(folder)
    return aside if aside.is_dir() else None


def aside_of(folder: Path) -> Path:
    """Return where ``--overwrite`` puts the run in `folder`."""
    return folder.with_name(f".{folder.name}.replaced")


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


def _free(path: Path) -> bool:
    return not os.path.lexists(path) or vacant(path)


def _wanted(spec: RunSpec, output_dir: Path, name: str | None) -> Path:
    """Return the folder by the user's name, by the recipe of a whole run, or by the settings."""
    if name is None and spec.preset is not None and "/" in spec.preset:
        name = spec.preset.replace("/", "-")
    return output_dir / (name or "-".join((spec.backbone, spec.task, spec.dataset, spec.combiner)))


def _described(path: Path) -> RunSpec | None:
    """Return the description of the run in a folder, or of the first of several seeds; None if there is none."""
    seeds = SeedsFolder(path).read()
    if seeds is not None:
        return RunSpec.model_validate(seeds["spec"])
    folder = RunFolder(path)
    return folder.read_spec() if folder.was_started else None
