"""Read an untrusted pickle without running code from it: only plain values and numpy arrays are accepted.

`pickle.load` runs any code that the file asks for. Here the few functions that a pickled numpy array names are replaced
by records that only store their arguments. The arrays are built from the records afterwards, with `numpy.frombuffer`.
So neither Python code nor numpy's unchecked ``__setstate__`` ever receives a hostile state.
"""

from __future__ import annotations

import io
import mmap
import pickle
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn

from meltr.data.pickle_records import ADMITTED, ArrayRecord, DtypeRecord, StandIn
from meltr.data.pickle_records import ArraySpan as ArraySpan
from meltr.data.pickle_records import Span as Span
from meltr.errors import UserError
from meltr.limits import UnreadableError, file_bytes, require_regular

LARGEST = 16 * 2**30
"""Bytes of the largest pickle that is read whole."""


_KEY_PARTS = 10_000
"""Most parts of a tuple that is a key or a member of a set, where a shared part counts each time."""

_SHARED_PARTS = 10_000_000
"""Most parts of all content that may be counted more than once because several containers share them."""


def _check_hashable(keys: Iterable[Any]) -> None:
    """Raise a ValueError if a key is a tuple whose hash would take too long, or would overflow the stack."""
    for key in keys:
        if isinstance(key, (tuple, frozenset)):
            waiting, seen = [key], 0
            while waiting:
                part = waiting.pop()
                seen += 1
                if seen > _KEY_PARTS:
                    raise ValueError(f"a key of more than {_KEY_PARTS:,} parts")
                if isinstance(part, (tuple, frozenset)):
                    waiting += part


def _check_sharing(content: Any, size: int) -> None:
    """Raise a ValueError if containers share parts so often that reading them would not end.

    Args:
        content: What was unpickled.
        size: Bytes of the file.
    """
    counts: dict[int, int] = {}
    most = _SHARED_PARTS + 100 * size
    waiting: list[tuple[Any, bool]] = [(content, False)]
    while waiting:
        value, done = waiting.pop()
        parts = _parts_of(value)
        if parts is None or (not done and counts.get(id(value), 0) > 0):
            continue
        if done:
            counts[id(value)] = 1 + sum(counts.get(id(part), 1) for part in parts)
            if counts[id(value)] > most:
                raise ValueError("containers that share their parts without end")
            continue
        if counts.get(id(value)) == 0:  # a container that contains itself
            continue
        counts[id(value)] = 0
        waiting.append((value, True))
        waiting += [(part, False) for part in parts if isinstance(part, _CONTAINERS)]


_CONTAINERS = (list, tuple, dict, set, frozenset, ArrayRecord)


def _parts_of(value: Any) -> list[Any] | None:
    if isinstance(value, dict):
        return [*value, *value.values()]
    if isinstance(value, ArrayRecord):
        return [value.buffer]
    return list(value) if isinstance(value, (list, tuple, set, frozenset)) else None


class _ForbiddenError(Exception):
    """Raised for a global that is not allowed; carries its name."""


class _Unpickler(pickle._Unpickler):
    """The standard library's pure-Python unpickler. Its memo is a dict, so a huge memo index costs no memory.

    Keys and members of sets are checked before they are hashed: the hash of a tuple visits shared parts repeatedly.
    """

    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    read: Callable[[int], bytes]
    stack: list[Any]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _check_hashable([key])
        self.stack[-1][key] = value

    def _set_items(self) -> None:
        items = self.pop_mark()
        _check_hashable(items[::2])
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def _make_dict(self) -> None:
        items = self.pop_mark()
        _check_hashable(items[::2])
        self.append(dict(zip(items[::2], items[1::2], strict=True)))

    def _add_items(self) -> None:
        items = self.pop_mark()
        _check_hashable(items)
        self.stack[-1].update(items)

    def _make_frozenset(self) -> None:
        items = self.pop_mark()
        _check_hashable(items)
        self.append(frozenset(items))

    def _make_bytearray(self) -> None:
        size = int.from_bytes(self.read(8), "little")
        content = self.read(size)  # before anything of this size is allocated
        if len(content) < size:
            raise EOFError(f"{size:,} bytes are announced")
        self.append(bytearray(content))

    dispatch[pickle.SETITEM[0]] = _set_item
    dispatch[pickle.SETITEMS[0]] = _set_items
    dispatch[pickle.DICT[0]] = _make_dict
    dispatch[pickle.ADDITEMS[0]] = _add_items
    dispatch[pickle.FROZENSET[0]] = _make_frozenset
    dispatch[pickle.BYTEARRAY8[0]] = _make_bytearray

    def find_class(self, module: str, name: str) -> Any:
        try:
            return ADMITTED[module, name]
        except KeyError:
            raise _ForbiddenError(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> NoReturn:
        raise ValueError("a reference to another file")


def _finish(value: Any, done: dict[int, Any]) -> Any:
    """Replace the records inside `value` by the objects they describe; `done` maps the ids of values already seen."""
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, StandIn):
        raise ValueError("a bare reference to a function")
    if isinstance(value, (ArrayRecord, DtypeRecord)):
        if isinstance(value, ArrayRecord) and isinstance(value.buffer, list):
            value.buffer = _finish(value.buffer, done)
        done[id(value)] = value.make()
    elif isinstance(value, list):
        done[id(value)] = value
        value[:] = [_finish(item, done) for item in value]
    elif isinstance(value, dict):
        done[id(value)] = value
        pairs = [(_finish(key, done), _finish(item, done)) for key, item in value.items()]
        value.clear()
        value.update(pairs)
    elif isinstance(value, (tuple, set, frozenset)):
        done[id(value)] = type(value)(_finish(item, done) for item in value)
    else:
        return value
    return done[id(value)]


def load_pickle(path: Path, *, encoding: Literal["latin1", "bytes", "ASCII", "utf-8"] = "latin1") -> Any:
    """Return the content of a pickle that holds plain values and numpy arrays of them.

    Args:
        path: The file.
        encoding: How to decode Python 2's byte strings: a text codec, or ``bytes`` to keep them.

    Returns:
        None, booleans, numbers, text, bytes, numpy arrays and scalars, and lists, tuples, sets and dicts of them.

    Raises:
        UserError: If the file cannot be read, is truncated or corrupt, or names anything but the above. The message
            names the file and the forbidden global. Nothing from the file has been imported or called.
    """

    def read() -> Any:
        content = file_bytes(path, most=LARGEST)
        if not content.endswith(pickle.STOP):
            raise EOFError("it does not end like a pickle")
        value = _Unpickler(io.BytesIO(content), encoding=encoding).load()
        _check_sharing(value, len(content))
        return _finish(value, {})

    return _explained(path, read)


def index_pickle(path: Path, *, shortest: int = 256) -> Any:
    """Return what `load_pickle` returns, with only the positions of long values: most of a large file is never read.

    Args:
        path: The file.
        shortest: Size in bytes from which a text or an array counts as long.

    Returns:
        As `load_pickle`, with a `Span` in place of each long text (stored in UTF-8) and each long bytes value, keys
        included, and an `ArraySpan` in place of each large array. Values written by Python 2 or protocol 0 are returned
        unchanged.

    Raises:
        UserError: As `load_pickle`.
    """

    def read() -> Any:
        require_regular(path)
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content[-1:] != pickle.STOP:
                raise EOFError("it does not end like a pickle")
            value = _Indexer(content, shortest).load()
            _check_sharing(value, len(content))
            return _finish(value, {})

    return _explained(path, read)


class _Indexer(_Unpickler):
    """Skips over long texts and records their positions."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(_Unpickler.dispatch)

    def __init__(self, content: mmap.mmap, shortest: int) -> None:
        super().__init__(content)
        self._content, self._shortest = content, shortest

    def _take(self, width: int, *, text: bool) -> None:
        size = int.from_bytes(self.read(width), "little")
        start = self._content.tell()
        if start + size > len(self._content):
            raise EOFError(f"{size:,} bytes are announced at byte {start:,}")
        if size >= self._shortest:
            self._content.seek(size, io.SEEK_CUR)
            self.append(Span(start, start + size))
        else:
            raw = self.read(size)
            self.append(str(raw, "utf-8", "surrogatepass") if text else raw)

    def _pass_frame(self) -> None:
        """Skip the frame header: it only says how much to read ahead, and here the file itself is read."""
        self.read(8)

    dispatch[pickle.FRAME[0]] = _pass_frame
    dispatch[pickle.BINUNICODE[0]] = partial(_take, width=4, text=True)
    dispatch[pickle.BINUNICODE8[0]] = partial(_take, width=8, text=True)
    dispatch[pickle.BINBYTES[0]] = partial(_take, width=4, text=False)
    dispatch[pickle.BINBYTES8[0]] = partial(_take, width=8, text=False)
    dispatch[pickle.BYTEARRAY8[0]] = partial(_take, width=8, text=False)


def _explained(path: Path, read: Callable[[], Any]) -> Any:
    """Return the result of `read`; on failure raise a UserError that names the file."""
    try:
        return read()
    except _ForbiddenError as error:
        raise UserError(
            f"{path} was refused: it asks for {error}, which is neither a plain value nor a numpy array, "
            "and loading it could run code.",
            "None of its code was run. Download the file again from its official source.",
        )
    except UnreadableError:
        raise
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.", "Check the path and its permissions.")
    except Exception as error:  # a hostile file can make the unpickler raise anything
        size, reason = path.stat().st_size, _reason(error)
        raise UserError(
            f"{path} is truncated or corrupt ({size:,} bytes): {type(error).__name__}{reason}.",
            "Delete it and download it again from its official source.",
        )


def _reason(error: Exception) -> str:
    """Return the text of an error; that of a KeyError is a value from the file, which may be long without end."""
    return "" if isinstance(error, (KeyError, RecursionError)) else f": {error!s:.300}"
