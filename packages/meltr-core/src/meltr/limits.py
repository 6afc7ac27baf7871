"""What a file from elsewhere may cost: one limit for every reader, on size, nesting, digits, aliases and kind of file.

Each function raises `UnreadableError`, a UserError that names the file; a reader may add its own hint. Nothing here
runs code from a file.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import re
import stat
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from meltr.errors import UserError

if TYPE_CHECKING:
    import numpy as np

TEXT_BYTES = 4 * 2**30
"""Largest text file. Annotations of the largest public data sets have 2 GiB."""

UNPACKED_BYTES = 256 * 2**20
"""Largest content of a compressed text, and largest array of a compressed archive, after decompression."""

_PIECE = 2**20
"""Bytes that are decompressed at a time."""

SETTINGS_BYTES = 256 * 2**10
"""Largest file of settings; the run.yaml of a run has a few KiB, and YAML is slow to read."""

SETTINGS_DEPTH = 200
"""Most brackets that may be open at once in settings; the time to read them grows with the square of it."""

SETTINGS_NODES = 100_000
"""Most values of a file of settings, where an alias counts as all that it stands for."""


class UnreadableError(UserError):
    """A file cannot be read: it is missing, no regular file, too large, or not what its reader expects.

    Args:
        where: The file, with the line or part if that is known.
        problem: What is wrong, with the value found.
        hint: What to do.
    """

    def __init__(self, where: Path | str, problem: str, hint: str | None = None) -> None:
        joint = " " if problem.startswith(("is ", "cannot ", "unpacks ")) else ": "
        super().__init__(f"{where}{joint}{problem}", hint)
        self.problem = problem


def file_bytes(path: Path, *, most: int = TEXT_BYTES) -> bytes:
    """Return the content of a regular file.

    Args:
        path: The file.
        most: Most bytes that it may have.

    Raises:
        FileNotFoundError: If there is no such file.
        UnreadableError: If it is a folder, a pipe or a device, is too large, or cannot be read.
    """
    try:
        require_regular(path)
        with path.open("rb") as stream:
            # A read of n bytes allocates them all, so that n is the size of the file and not the limit.
            content = stream.read(min(os.fstat(stream.fileno()).st_size, most) + 1)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UnreadableError(path, f"cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    if len(content) > most:
        raise UnreadableError(path, f"more than {most:,} bytes.")
    return content


def require_regular(path: Path) -> None:
    """Check that a path is a regular file: reading a pipe or a device may never end.

    Raises:
        OSError: If there is no such file.
        UnreadableError: If it is anything else.
    """
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise UnreadableError(path, "is a folder, not a file.")
    if not stat.S_ISREG(mode):
        raise UnreadableError(path, "is not a regular file.")


def file_text(path: Path, *, most: int = TEXT_BYTES) -> str:
    """Return the content of a file as UTF-8 text, without a byte order mark; a ``.gz`` file is decompressed.

    Raises:
        FileNotFoundError: If there is no such file.
        UnreadableError: If it cannot be read, unpacks to too much, or is not UTF-8.
    """
    content = file_bytes(path, most=most)
    if path.suffix == ".gz":
        content = _unpacked(content, path)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableError(path, f"not UTF-8 text: {error.reason} at byte {error.start:,}.") from None


def _unpacked(content: bytes, path: Path) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as stream:
            found = bytearray()
            while len(found) <= UNPACKED_BYTES and (piece := stream.read(_PIECE)):
                found += piece
    except Exception as error:  # gzip, zlib and their headers have many errors
        raise UnreadableError(path, f"not a complete gzip file: {error}.") from error
    if len(found) > UNPACKED_BYTES:
        raise UnreadableError(path, f"unpacks to more than {UNPACKED_BYTES:,} bytes.")
    return bytes(found)


_ODD = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")


def from_json(text: str | bytes, where: Path | str, *, finite: bool = True) -> Any:
    """Return the content of a JSON text, whose texts can be written again.

    Args:
        text: The text.
        where: The file, and its line if that is known.
        finite: Refuse numbers that are not finite; False: accept NaN and infinities, as Python writes them.

    Raises:
        UnreadableError: If it is not valid JSON, is nested too deeply, has a number that is not finite or has too many
            digits, or a text with NUL or half a surrogate pair.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        value = json.loads(text, parse_constant=_no_constant, parse_float=_finite) if finite else json.loads(text)
        if _ODD.search(text):
            _check_texts(value)
    except json.JSONDecodeError as error:
        at = f"{where}, line {error.lineno}" if isinstance(where, Path) else where
        raise UnreadableError(at, f"not valid JSON: {error.msg} (column {error.colno}).") from None
    except UnicodeDecodeError as error:
        raise UnreadableError(where, f"not UTF-8 text: {error.reason} at byte {error.start:,}.") from None
    except RecursionError:
        raise UnreadableError(where, "not valid JSON: nested too deeply.") from None
    except ValueError as error:  # an integer with thousands of digits, and the checks above
        raise UnreadableError(where, f"not valid JSON: {str(error).partition(';')[0]}.") from None
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"the number {name}")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:20]} is beyond floating point")
    return number


def _check_texts(value: Any) -> None:
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, str):
            if "\0" in each:
                raise ValueError("a text has the character NUL")
            if any("\ud800" <= letter <= "\udfff" for letter in each):
                raise ValueError("a text has half a surrogate pair")
        elif isinstance(each, dict):
            waiting += [*each, *each.values()]
        elif isinstance(each, list):
            waiting += each


def from_yaml(text: str, where: Path | str) -> Any:
    """Return the content of a YAML text of settings; dates are texts.

    Raises:
        UnreadableError: If it is not valid YAML, repeats a key, or is too large, also with its aliases written out.
    """
    import yaml

    if len(text) > SETTINGS_BYTES:
        raise UnreadableError(where, f"more than {SETTINGS_BYTES:,} characters.")
    if _brackets_open(text) > SETTINGS_DEPTH:
        raise UnreadableError(where, "not valid YAML: nested too deeply.")
    try:
        return yaml.load(text, _yaml_loader())  # noqa: S506 - a subclass of SafeLoader
    except yaml.YAMLError as error:
        raise UnreadableError(where, f"not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UnreadableError(where, "not valid YAML: nested too deeply, or refers to itself.") from None
    except Exception as error:  # the constructors of numbers and other types can raise anything
        raise UnreadableError(
            where, f"not valid YAML: {str(error).partition(';')[0] or type(error).__name__}."
        ) from None


def _brackets_open(text: str) -> int:
    """Return the largest number of brackets that are open at once, wherever they are."""
    depth = most = 0
    for bracket in re.findall(r"[\[{\]}]", text):
        depth = depth + 1 if bracket in "[{" else max(0, depth - 1)
        most = max(most, depth)
    return most


def _yaml_loader() -> Any:
    """Return the class of a safe loader with these limits, made at the first call."""
    import yaml

    global _Loader
    if _Loader is not None:
        return _Loader

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers = {  # noqa: RUF012
            letter: [(tag, pattern) for tag, pattern in rules if tag != "tag:yaml.org,2002:timestamp"]
            for letter, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

        def get_single_node(self) -> Any:
            node = super().get_single_node()
            if node is not None and _size_of(node, {}) > SETTINGS_NODES:
                raise ValueError(f"more than {SETTINGS_NODES:,} values with its aliases written out")
            return node

    _Loader = Loader
    return Loader


_Loader: Any = None


def _size_of(node: Any, known: dict[int, int]) -> int:
    """Return the number of values below a node, where an alias counts as all that it stands for.

    Raises:
        ValueError: If a mapping repeats a key.
        RecursionError: If a node refers to itself, or nodes are nested too deeply.
    """
    if id(node) in known:
        if known[id(node)] < 0:
            raise RecursionError
        return known[id(node)]
    known[id(node)] = -1
    total = 1
    if isinstance(node.value, list):
        keys = [(part[0].tag, part[0].value) for part in node.value if isinstance(part, tuple)]
        texts = [key for key in keys if isinstance(key[1], str) and key[1] != "<<"]
        if len(set(texts)) < len(texts):
            twice = next(value for number, (tag, value) in enumerate(texts) if (tag, value) in texts[:number])
            raise ValueError(f"the key {twice!r:.60} occurs twice")
        for each in node.value:
            for part in each if isinstance(each, tuple) else (each,):
                total += _size_of(part, known)
    known[id(node)] = total
    return total


def check_zip(path: Path) -> None:
    """Check that a zip file stores its content uncompressed, as torch does: no small file unpacks to a large one.

    Raises:
        UnreadableError: If it does not.
        zipfile.BadZipFile: If it is not a zip file.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    packed = next((each.filename for each in entries if each.compress_type != zipfile.ZIP_STORED), None)
    total, size = sum(each.file_size for each in entries), path.stat().st_size
    if packed is not None or total > size:
        raise UnreadableError(path, f"unpacks to {total:,} bytes from {size:,}; torch.save does not compress.")


def npy_array(path: Path) -> np.ndarray[Any, Any]:
    """Return the array of a ``.npy`` file; it never allocates more than the file holds.

    Raises:
        UnreadableError: If the file is not an array of numbers, or has another size than its header states.
    """
    try:
        require_regular(path)
        with path.open("rb") as stream:
            return _npy(stream, path.stat().st_size, path)
    except OSError as error:
        raise UnreadableError(path, f"cannot be read: {error.strerror or error}.") from error


class Npz:
    """A ``.npz`` archive whose arrays are read one by one; none may unpack to more than `UNPACKED_BYTES`.

    Args:
        path: The file.

    Raises:
        UnreadableError: If it is not an archive of arrays.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            require_regular(path)
            self._archive = zipfile.ZipFile(path)
        except Exception as error:  # a broken archive can make zipfile raise anything
            reason = (
                error.problem
                if isinstance(error, UnreadableError)
                else f"is truncated or corrupt: {type(error).__name__}: {error}."
            )
            raise UnreadableError(path, reason) from error
        self._entries = {each.filename.removesuffix(".npy"): each for each in self._archive.infolist()}

    def __iter__(self) -> Iterator[str]:
        """Names of the arrays."""
        return iter(self._entries)

    def array(self, name: str) -> np.ndarray[Any, Any]:
        """Return an array; KeyError if there is none of this name, UnreadableError if it is damaged or too large."""
        entry, where = self._entries[name], f"{self.path}, {name!r}"
        if entry.file_size > UNPACKED_BYTES:
            raise UnreadableError(where, f"unpacks to {entry.file_size:,} bytes; at most {UNPACKED_BYTES:,} are read.")
        return _guarded(lambda: self._read(entry, where), where)

    def _read(self, entry: zipfile.ZipInfo, where: str) -> np.ndarray[Any, Any]:
        with self._archive.open(entry) as stream:
            content = stream.read(entry.file_size + 1)
        return _npy(io.BytesIO(content), len(content), where)


def _npy(stream: IO[bytes], size: int, where: Path | str) -> np.ndarray[Any, Any]:
    def read() -> np.ndarray[Any, Any]:
        import numpy as np
        from numpy.lib import format as npy

        version = npy.read_magic(stream)
        header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = header(stream)
        if dtype.hasobject:
            raise ValueError("an array of objects")
        left = size - stream.tell()
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != left:
            raise ValueError(f"an array of shape {shape} and type {dtype} with {left:,} bytes")
        content = stream.read(left)
        return np.frombuffer(bytearray(content), dtype).reshape(shape, order="F" if fortran else "C")

    return _guarded(read, where)


def _guarded(read: Callable[[], np.ndarray[Any, Any]], where: Path | str) -> np.ndarray[Any, Any]:
    try:
        return read()
    except UnreadableError:
        raise
    except Exception as error:  # the parser of headers is Python's own, and raises anything
        raise UnreadableError(where, f"is truncated or corrupt: {type(error).__name__}: {error}.") from error
