"""A run takes its folder: no other run gets the same one, and an earlier run is deleted only after it has a successor.

With ``--overwrite`` the earlier run waits as ``.NAME.replaced`` beside its place. It is deleted when the new run ends
with a checkpoint or results, and put back if that ends without. After a kill, the next command for the folder does one
of both.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

from meltr.errors import UserError
from meltr.folders.locks import LockedError, RunLock, vacant
from meltr.folders.places import aside_of, next_name, set_aside, taken
from meltr.folders.run_folder import RunFolder
from meltr.folders.seeds_folder import SeedsFolder

Say = Callable[[str], None]


class Claim:
    """The folder of a run while a process works in it.

    Args:
        folder: The folder, or the parent of the folders of several seeds.
        resume: Go on with what is in it.
        named: The user chose the name: no other one will do.
        overwrite: Replace what is in it.
        force: Take over a lock of another host.
        say: Told what was found.
    """

    def __init__(
        self, folder: Path, *, resume: bool, named: bool, overwrite: bool, force: bool = False, say: Say
    ) -> None:
        self._folder, self._resume, self._named = folder, resume, named
        self._overwrite, self._force, self._say = overwrite, force, say
        self._made: list[Path] = []
        self._lock: RunLock | None = None

    def enter(self) -> Path:
        """Lock the folder, made if need be, and return it: another one if it was taken and has no chosen name.

        Raises:
            UserError: If another process works in it, or it holds something that is not to be replaced.
        """
        aside = set_aside(self._folder)
        if self._resume:
            if not RunFolder(self._folder).results.exists():
                self._lock_it(self._folder)
            if aside is not None:
                self._say(f"the run that this one replaces is in {aside}, until this one has a checkpoint or results")
            return self._folder
        self._bring_back(aside)
        replacing = self._overwrite and self._folder.exists() and not vacant(self._folder)
        if replacing:
            self._put_aside()
        try:
            while not self._take():
                self._folder = next_name(self._folder)
        except BaseException:
            if replacing and not self._folder.exists():
                aside_of(self._folder).rename(self._folder)
            raise
        return self._folder

    def leave(self) -> bool:
        """End the lock; delete the earlier run or put it back, and delete a folder in which nothing was begun.

        Returns:
            Whether the earlier run was put back.
        """
        if self._lock is None:
            return False
        folder, aside = self._folder, set_aside(self._folder)
        if aside is not None and RunFolder(folder).keeps_work:
            shutil.rmtree(aside, ignore_errors=True)
        elif aside is not None and not self._resume:
            self._release()
            shutil.rmtree(folder, ignore_errors=True)
            aside.rename(folder)
            return True
        self._release()
        for made in self._made:
            with contextlib.suppress(OSError):
                made.rmdir()
        return False

    def _take(self) -> bool:
        """Make and lock the folder; return False if it is taken and another one will do."""
        folder = self._folder
        made = [each for each in (folder, *folder.parents) if not each.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock_it(folder)
        except LockedError:
            if self._named:
                raise
            return False
        except OSError as error:
            reason = error.strerror or error
            raise UserError(
                f"Cannot write the run folder {folder}: {reason}.", "Choose another place with --output-dir."
            )
        self._made = list(dict.fromkeys((folder, *made)))  # A run that came second may have made the folder.
        if vacant(folder):
            return True
        self._release()
        if self._named:
            raise taken(folder)
        return False

    def _lock_it(self, folder: Path) -> None:
        self._lock = RunLock.take(folder, force=self._force)
        if self._lock.stale is not None and self._resume:
            self._say(f"took over the lock of {self._lock.stale}, which has ended")

    def _release(self, moved: Path | None = None) -> None:
        if self._lock is not None:
            self._lock.release(moved)
            self._lock = None

    def _put_aside(self) -> None:
        folder = self._folder
        if not _may_be_replaced(folder):
            raise UserError(f"{folder} is not a run folder; it is not deleted", "Choose another --name.")
        self._lock_it(folder)
        aside = aside_of(folder)
        folder.rename(aside)
        self._release(moved=aside)

    def _bring_back(self, aside: Path | None) -> None:
        """Do what an ``--overwrite`` that was killed could not do any more."""
        folder = self._folder
        if aside is None:
            return
        if folder.exists():
            if not (vacant(folder) or _may_be_replaced(folder)):
                self._say(f"{aside} holds a run that was in {folder}; it is left where it is")
                return
            RunLock.take(folder, force=self._force).release()
            if RunFolder(folder).keeps_work:
                shutil.rmtree(aside)
                return
            shutil.rmtree(folder)
        aside.rename(folder)
        self._say(f"the earlier run is back in {folder}: the one that was to replace it ended without a checkpoint")


def _may_be_replaced(path: Path) -> bool:
    if path.is_symlink() or not path.is_dir():
        return False
    return RunFolder(path).holds_run or SeedsFolder(path).description.exists()
