"""Fetch an official file, check it, and unpack it: whole and verified, or not there at all. Imports no torch."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

from meltr.errors import UserError

CHUNK = 1 << 20
"""Bytes a read."""

Progress = Callable[[int, int | None], None]
"""Called with the bytes so far and the total, None if the server does not say."""


def file_digest(path: Path, algorithm: str) -> str:
    """Return the hexadecimal digest of a file.

    Args:
        path: The file.
        algorithm: ``md5`` or ``sha256``.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


def _expected(md5: str | None, sha256: str | None) -> tuple[str, str]:
    if (md5 is None) == (sha256 is None):
        raise ValueError("give exactly one of md5 and sha256")
    return ("md5", md5) if md5 is not None else ("sha256", str(sha256))


def download(
    url: str,
    path: Path,
    *,
    md5: str | None = None,
    sha256: str | None = None,
    progress: Progress | None = None,
    timeout: float = 60.0,
) -> Path:
    """Fetch `url` into `path`, written beside it and renamed once its checksum is right.

    A file that is already there with the right checksum is kept, without a request. A partial or wrong file never
    stays: it is removed whatever goes wrong.

    Args:
        url: Where to get it.
        path: Where it goes; missing folders are made.
        md5: Expected MD5 digest in hexadecimal; exactly one digest must be given.
        sha256: Expected SHA-256 digest in hexadecimal.
        progress: Called after each piece.
        timeout: Seconds without an answer after which the server counts as unreachable.

    Returns:
        `path`.

    Raises:
        UserError: If the server cannot be reached, the transfer breaks off, the folder cannot be written, or the
            checksum is wrong.
    """
    algorithm, expected = _expected(md5, sha256)
    if path.is_file() and file_digest(path, algorithm) == expected:
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror or error}.", "Choose another folder or free some space.")
    part = Path(name)
    try:
        os.close(handle)
        _transfer(url, part, progress=progress, timeout=timeout)
        found = file_digest(part, algorithm)
        if found != expected:
            raise UserError(
                f"{url} came with {algorithm} {found}, but {expected} was expected ({part.stat().st_size:,} bytes).",
                "Nothing was kept. Try again; if it stays wrong, get the file by hand from its homepage.",
            )
        part.chmod(0o644)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _transfer(url: str, part: Path, *, progress: Progress | None, timeout: float) -> None:
    """Write the body of `url` to `part`; UserError on any failure, also on fewer bytes than were announced."""
    done, total = 0, None
    by_hand = f"Check the network, or fetch it elsewhere and copy it here: {url}"
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "meltr"})
        with urllib.request.urlopen(request, timeout=timeout) as answer, part.open("wb") as stream:
            length = answer.headers.get("Content-Length")
            total = int(length) if length and length.isdigit() else None
            while piece := answer.read(CHUNK):
                stream.write(piece)
                done += len(piece)
                if progress is not None:
                    progress(done, total)
    except urllib.error.HTTPError as error:
        raise UserError(f"{url} cannot be fetched: the server answered {error.code} {error.reason}.", by_hand)
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(f"{url} cannot be fetched: {reason} (after {done:,} bytes).", by_hand)
    if total is not None and done != total:
        raise UserError(f"{url} broke off after {done:,} of {total:,} bytes; nothing was kept.", by_hand)


def extract_tar(archive: Path, folder: Path) -> list[Path]:
    """Unpack a tar archive into `folder`, refusing anything that would land outside it.

    The archive is unpacked beside `folder`'s content first (with the standard library's ``data`` filter: no absolute
    paths, no links that lead outside, no devices), then file after file is moved to its place. So a broken archive
    leaves nothing, files of the same name are replaced, and others are left alone.

    Args:
        archive: The archive, compressed or not.
        folder: Where it goes; made if missing.

    Returns:
        The files, sorted.

    Raises:
        UserError: If the archive is broken or unsafe, or this Python is too old to unpack safely.
    """
    if not hasattr(tarfile, "data_filter"):
        raise UserError("This Python cannot unpack archives safely.", "Update to Python 3.11.4 or newer.")
    folder.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".extract-", dir=folder))
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(scratch, filter="data")
        moved = []
        for source in sorted(path for path in scratch.rglob("*") if path.is_file() and not path.is_symlink()):
            target = folder / source.relative_to(scratch)
            target.parent.mkdir(parents=True, exist_ok=True)
            source.replace(target)
            moved.append(target)
        return moved
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise UserError(
            f"{archive} cannot be unpacked: {type(error).__name__}: {error}.", "Delete it and fetch it again."
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
