"""The lock of a run: one process at a time writes into a run's folder.

``run.lock`` holds process, host and time as JSON. The system's lock on the file ends with its process, however that
ends; so a lock that is left over on the same host is known to be stale. Of another host nothing is known.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import socket
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from meltr.errors import UserError

fcntl: ModuleType | None
try:
    fcntl = importlib.import_module("fcntl")
except ImportError:  # Windows
    fcntl = None

NAME = "run.lock"
_REFUSED = {errno.EACCES, errno.EAGAIN}
_HELD: set[str] = set()
"""Locks of this process: the system's locks do not keep a process out of its own."""


class LockedError(UserError):
    """Another process writes into the folder."""


class RunLock:
    """A lock that this process holds; made by `take`.

    Args:
        path: The file.
        descriptor: The open file, whose lock lasts until it is closed.
        stale: The process whose stale lock this one replaced, in words; None if there was none.
    """

    def __init__(self, path: Path, descriptor: int, stale: str | None) -> None:
        self.path, self.stale = path, stale
        self._descriptor, self._key = descriptor, os.path.realpath(path)
        _HELD.add(self._key)

    @classmethod
    def take(cls, folder: Path, *, force: bool = False) -> RunLock:
        """Lock the folder of a run, which exists.

        Args:
            folder: The folder.
            force: Take over a lock of another host: that process is known to have ended.

        Raises:
            LockedError: If another process holds the lock, or may: which, where and since when.
        """
        path = folder / NAME
        if os.path.realpath(path) in _HELD:
            raise _locked(folder, _described(_read(path)), "It is this very process.")
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                free = _lock(descriptor)
                if free is not False and not _is(descriptor, path):
                    os.close(descriptor)  # Its holder has just deleted it.
                    continue
                stale = _checked(folder, _content(descriptor), free=free, force=force)
                _write(descriptor)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
                raise
            return cls(path, descriptor, stale)

    def release(self, moved: Path | None = None) -> None:
        """Delete the file and end the lock; calling it twice is harmless.

        Args:
            moved: The folder, if it has got another name.
        """
        if self._key not in _HELD:
            return
        _HELD.discard(self._key)
        with contextlib.suppress(OSError):
            (self.path if moved is None else moved / NAME).unlink()
        os.close(self._descriptor)


def vacant(folder: Path) -> bool:
    """Return whether a folder holds nothing but, perhaps, a lock."""
    return folder.is_dir() and not folder.is_symlink() and all(item.name == NAME for item in folder.iterdir())


def _lock(descriptor: int) -> bool | None:
    """Return whether the system gave the lock; None if it has none there (Windows, some network file systems)."""
    if fcntl is None:
        return None
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in _REFUSED else None
    return True


def _is(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _checked(folder: Path, holder: dict[str, Any], *, free: bool | None, force: bool) -> str | None:
    """Return the process that left a stale lock, None if there was none; LockedError if it may still run."""
    if free is False:
        raise _locked(folder, _described(holder), "Wait for it, or end it.")
    if not holder:
        return None
    who = _described(holder)
    if holder.get("host") != socket.gethostname():
        if not force:
            raise _locked(
                folder, who, "Nothing is known of that host. If the process has ended there, add --force-unlock."
            )
        return who
    if free is None and not force and _alive(holder.get("pid")):
        raise _locked(folder, who, "Wait for it, or end it. If it is another process by now, add --force-unlock.")
    return who


def _alive(pid: Any) -> bool:
    if os.name == "nt":
        return True  # not known: os.kill would end the process there
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, TypeError, ValueError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _locked(folder: Path, who: str, hint: str) -> LockedError:
    return LockedError(f"{folder} is in use by {who}", hint)


def _described(holder: dict[str, Any]) -> str:
    if not holder:
        return "a process that is just starting"
    return f"process {holder.get('pid')} on host {holder.get('host')} since {holder.get('since')}"


def _read(path: Path) -> dict[str, Any]:
    try:
        return _parsed(path.read_bytes())
    except OSError:
        return {}


def _content(descriptor: int) -> dict[str, Any]:
    os.lseek(descriptor, 0, os.SEEK_SET)
    return _parsed(os.read(descriptor, 4096))


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _write(descriptor: int) -> None:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    content = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, (json.dumps(content) + "\n").encode())
