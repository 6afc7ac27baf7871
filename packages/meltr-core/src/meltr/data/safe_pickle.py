"""Read an untrusted pickle without running code from it: only plain values and numpy arrays are accepted.

`pickle.load` runs any code that the file asks for. Here the few functions that a pickled numpy array names are replaced
by records that only store their arguments. The arrays are built from the records afterwards, with `numpy.frombuffer`.
So neither Python code nor numpy's unchecked ``__setstate__`` ever receives a hostile state.
"""

from __future__ import annotations

import io
import math
import mmap
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn

import numpy as np

from meltr.errors import UserError


class _Dtype:
    """Record of a pickled dtype: ``numpy.dtype(code, align, copy)`` and then its state."""

    __slots__ = ("byteorder", "code")

    def __init__(self, code: Any) -> None:
        self.code = code
        self.byteorder = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Keep the byte order; reject subarrays and fields (structured types)."""
        if any(part is not None for part in state[2:5]):
            raise ValueError("a structured dtype")
        self.byteorder = _text(state[1])

    def make(self) -> np.dtype[Any]:
        """Return the dtype; only booleans, numbers, fixed-width strings and objects are allowed."""
        dtype = np.dtype(_text(self.code))
        if dtype.kind not in "biufcSUO":
            raise ValueError(f"the dtype {dtype}")
        return dtype if self.byteorder in ("|", "=") else dtype.newbyteorder(self.byteorder)  # type: ignore[arg-type]


class _Array:
    """Record of a pickled array."""

    __slots__ = ("axes", "buffer", "dtype", "order", "shape")

    def __init__(self) -> None:
        self.buffer: Any = b""
        self.dtype: Any = None
        self.shape: Any = ()
        self.order = "C"
        self.axes: Any = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Store ``(version, shape, dtype, is_fortran, bytes)``, numpy's own state of an array."""
        _, self.shape, self.dtype, fortran, self.buffer = state
        self.order = "F" if fortran else "C"

    def make(self) -> Any:
        """Return the array (writable), or the scalar for a record without a shape."""
        if not isinstance(self.dtype, _Dtype):
            raise ValueError("an array without a dtype")
        dtype = self.dtype.make()
        if isinstance(self.buffer, Span):
            return ArraySpan(self.buffer, dtype, self._shape(dtype, self.buffer.size), self.order, self.axes)
        if dtype.kind == "O":
            return self._objects()
        raw = self.buffer.encode("latin1") if isinstance(self.buffer, str) else bytes(self.buffer)
        if self.shape is None:
            return np.frombuffer(raw, dtype=dtype, count=1)[0]
        shape = self._shape(dtype, len(raw))
        return _shaped(np.frombuffer(bytearray(raw), dtype=dtype), shape, self.order, self.axes)

    def _shape(self, dtype: np.dtype[Any], size: int | None) -> tuple[int, ...]:
        """Return the shape; ValueError if it does not match `size` bytes (None: not known yet)."""
        shape = tuple(int(length) for length in self.shape)
        if dtype.kind == "O" or min(shape, default=0) < 0 or size not in (None, math.prod(shape) * dtype.itemsize):
            raise ValueError(f"an array of shape {shape} and dtype {dtype} with {size} bytes")
        return shape

    def _objects(self) -> Any:
        """Return an object array of plain values, which numpy pickles as a list."""
        shape = tuple(int(length) for length in self.shape)
        if not isinstance(self.buffer, list) or min(shape, default=0) < 0 or math.prod(shape) != len(self.buffer):
            raise ValueError(f"an array of shape {shape} that is not made of a list of its objects")
        flat = np.empty(len(self.buffer), dtype=object)
        for number, value in enumerate(self.buffer):
            flat[number] = value
        return _shaped(flat, shape, self.order, None)


def _shaped(flat: np.ndarray[Any, Any], shape: tuple[int, ...], order: str, axes: Any) -> Any:
    if order == "K" and axes is not None:
        return flat.reshape(shape).transpose(axes)
    return flat.reshape(shape, order="F" if order == "F" else "C")


class _Stand:
    """Stand-in for one allowed global; immutable, so that no pickle can change it for the next one."""

    __slots__ = ("kind",)

    kind: str

    def __init__(self, kind: str) -> None:
        object.__setattr__(self, "kind", kind)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise TypeError("immutable")

    def __call__(self, *args: Any) -> Any:
        """Do what the allowed global would do, restricted to harmless calls."""
        kind = self.kind
        if kind == "dtype":
            return _Dtype(args[0])
        if kind == "reconstruct":
            return _Array()
        if kind == "frombuffer":
            return _filled(args[0], args[1], shape=args[2], order=args[3], axes=args[4] if len(args) > 4 else None)
        if kind == "scalar":
            return _filled(args[1], args[0], shape=None)
        if kind == "encode" and len(args) == 2 and args[1] == "latin1":
            return args[0].as_latin1() if isinstance(args[0], Span) else args[0].encode("latin1")
        if kind == "bytes" and not args:
            return b""
        if kind == "bytearray" and (not args or isinstance(args[0], bytes)):
            return bytearray(*args[:1])
        if kind == "complex" and all(isinstance(part, float) for part in args):
            return complex(*args)
        raise ValueError(f"a call of {kind!r} with unusual arguments")


def _filled(buffer: Any, dtype: Any, *, shape: Any, order: str = "C", axes: Any = None) -> _Array:
    record = _Array()
    record.buffer, record.dtype, record.shape, record.order, record.axes = buffer, dtype, shape, order, axes
    return record


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


_ADMITTED = {
    ("numpy", "ndarray"): _Stand("ndarray"),
    ("numpy", "dtype"): _Stand("dtype"),
    ("_codecs", "encode"): _Stand("encode"),
    **{
        (f"numpy.{core}.{module}", name): _Stand(name.strip("_"))
        for core in ("core", "_core")
        for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
    },
    **{
        (module, name): _Stand(name)
        for module in ("__builtin__", "builtins")
        for name in ("bytes", "bytearray", "complex")
    },
}


class _ForbiddenError(Exception):
    """Raised for a global that is not allowed; carries its name."""


class _Unpickler(pickle._Unpickler):
    """The standard library's pure-Python unpickler. Its memo is a dict, so a huge memo index costs no memory."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise _ForbiddenError(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> NoReturn:
        raise ValueError("a reference to another file")


def _finish(value: Any, done: dict[int, Any]) -> Any:
    """Replace the records inside `value` by the objects they describe; `done` maps the ids of values already seen."""
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, _Stand):
        raise ValueError("a bare reference to a function")
    if isinstance(value, (_Array, _Dtype)):
        if isinstance(value, _Array) and isinstance(value.buffer, list):
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
        content = path.read_bytes()
        if not content.endswith(pickle.STOP):
            raise EOFError("it does not end like a pickle")
        return _finish(_Unpickler(io.BytesIO(content), encoding=encoding).load(), {})

    return _explained(path, read)


@dataclass(frozen=True, slots=True)
class Span:
    """Position of a long text in a file: its first byte and the byte after its last (hashable: it may be a key).

    Args:
        start: The first byte.
        stop: The byte after the last.
        latin1: The value is the Latin-1 encoding of the text, which is how protocol 2 writes bytes.
    """

    start: int
    stop: int
    latin1: bool = False

    @property
    def size(self) -> int | None:
        """Number of bytes that `read` returns; None if it is known only after reading."""
        return None if self.latin1 else self.stop - self.start

    def as_latin1(self) -> Span:
        """Return the same span, read as Latin-1 text."""
        return replace(self, latin1=True)

    def read(self, content: bytes | mmap.mmap) -> bytes:
        """Return the bytes; `content` is the whole file."""
        raw = content[self.start : self.stop]
        return raw.decode("utf-8").encode("latin1") if self.latin1 else raw


@dataclass(frozen=True, slots=True)
class ArraySpan:
    """Position of the data of a large array in a file.

    Args:
        span: The position.
        dtype: Type of the elements.
        shape: Lengths of the axes.
        order: ``C``, ``F`` or ``K`` with `axes`, as numpy pickles it.
        axes: Order of the axes, for ``K``.
    """

    span: Span
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: str = "C"
    axes: Any = None

    def read(self, content: bytes | mmap.mmap) -> Any:
        """Return the array, read-only; `content` is the whole file.

        Raises:
            ValueError: If the number of bytes does not match the shape.
        """
        return _shaped(np.frombuffer(self.span.read(content), dtype=self.dtype), self.shape, self.order, self.axes)


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
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content[-1:] != pickle.STOP:
                raise EOFError("it does not end like a pickle")
            return _finish(_Indexer(content, shortest).load(), {})

    return _explained(path, read)


class _Indexer(_Unpickler):
    """Skips over long texts and records their positions."""

    read: Callable[[int], bytes]
    append: Callable[[Any], None]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)

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
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.", "Check the path and its permissions.")
    except Exception as error:  # a hostile file can make the unpickler raise anything
        size = path.stat().st_size
        raise UserError(
            f"{path} is truncated or corrupt ({size:,} bytes): {type(error).__name__}: {error}.",
            "Delete it and download it again from its official source.",
        )
