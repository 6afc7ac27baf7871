"""Download a file, verify its checksum and unpack it; nothing partial is ever kept. Imports no torch."""

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
"""Bytes per read."""

Progress = Callable[[int, int | None], None]
"""Called with the bytes received so far and the total; the total is None if the server does not send it."""


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
    """Download `url` to `path`: written to a temporary file and renamed once the checksum is right.

    A file that already exists with the right checksum is kept, and no request is made. A partial or wrong file is
    always removed, on any error.

    Args:
        url: Address of the file.
        path: Destination; missing folders are created.
        md5: Expected MD5 digest in hexadecimal; exactly one digest must be given.
        sha256: Expected SHA-256 digest in hexadecimal.
        progress: Called after each read.
        timeout: Seconds without an answer after which the server counts as unreachable.

    Returns:
        `path`.

    Raises:
        UserError: If the server cannot be reached, the transfer is interrupted, the folder is not writable, or the
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
                "Nothing was kept. Try again; if it stays wrong, download the file by hand from its homepage.",
            )
        part.chmod(0o644)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _transfer(url: str, part: Path, *, progress: Progress | None, timeout: float) -> None:
    """Write the body of `url` to `part`; UserError on any failure, including fewer bytes than announced."""
    done, total = 0, None
    by_hand = f"Check the network, or download it elsewhere and copy it here: {url}"
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "meltr"})  # noqa: S310 - an address in our code
        with urllib.request.urlopen(request, timeout=timeout) as answer, part.open("wb") as stream:  # noqa: S310
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
    """Unpack a tar archive into `folder`; reject entries that would land outside it.

    The archive is first unpacked into a temporary folder inside `folder` (with the standard library's ``data`` filter:
    no absolute paths, no links that lead outside, no devices). Then each file is moved to its place. So a broken
    archive leaves nothing behind, files of the same name are replaced, and other files stay unchanged.

    Args:
        archive: The archive, compressed or not.
        folder: Destination; created if missing.

    Returns:
        The unpacked files, sorted.

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
            f"{archive} cannot be unpacked: {type(error).__name__}: {error}.", "Delete it and download it again."
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
