"""Records of what a pickle names: they store the arguments of numpy's functions, and build arrays from them later."""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np

_LONGEST_CODE = 64
"""Letters of the longest code of a dtype."""


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


class DtypeRecord:
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


class ArrayRecord:
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
        if not isinstance(self.dtype, DtypeRecord):
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


class StandIn:
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
            return DtypeRecord(args[0])
        if kind == "reconstruct":
            return ArrayRecord()
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


def _filled(buffer: Any, dtype: Any, *, shape: Any, order: str = "C", axes: Any = None) -> ArrayRecord:
    record = ArrayRecord()
    record.buffer, record.dtype, record.shape, record.order, record.axes = buffer, dtype, shape, order, axes
    return record


def _text(value: Any) -> str:
    """Return the code of a dtype; the text of anything else may be exponentially long."""
    if not isinstance(value, (str, bytes)) or len(value) > _LONGEST_CODE:
        raise ValueError("a dtype whose code is not a short text")
    return value.decode("latin1") if isinstance(value, bytes) else value


ADMITTED = {
    ("numpy", "ndarray"): StandIn("ndarray"),
    ("numpy", "dtype"): StandIn("dtype"),
    ("_codecs", "encode"): StandIn("encode"),
    **{
        (f"numpy.{core}.{module}", name): StandIn(name.strip("_"))
        for core in ("core", "_core")
        for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
    },
    **{
        (module, name): StandIn(name)
        for module in ("__builtin__", "builtins")
        for name in ("bytes", "bytearray", "complex")
    },
}
