"""The restricted unpickler: every ordinary content comes back, nothing else runs."""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meltr.data.safe_pickle import load_pickle
from meltr.errors import UserError

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.just(1 + 2j),
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(content=PLAIN, protocol=st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_values_come_back(tmp_path_factory: pytest.TempPathFactory, content: Any, protocol: int) -> None:
    file = tmp_path_factory.getbasetemp() / "plain"
    file.write_bytes(pickle.dumps(content, protocol=protocol))
    assert load_pickle(file) == content == pickle.loads(file.read_bytes())


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_come_back(tmp_path: Path, protocol: int) -> None:
    arrays = {
        "bytes": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "turned": np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2),
        "big endian": np.arange(3, dtype=">i4"),
        "text": np.array(["a", "bcd"]),
        "empty": np.empty((0, 5), dtype=np.float32),
        "scalar array": np.array(3.5),
        "scalar": np.float64(2.5),
        "bool": np.array([True, False]),
    }
    file = tmp_path / "file"
    file.write_bytes(pickle.dumps(arrays, protocol=protocol))
    found = load_pickle(file)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array)
    found["bytes"][0, 0, 0] = 9


def test_shared_and_cyclic_content(tmp_path: Path) -> None:
    array = np.arange(3)
    content: list[Any] = [array, array]
    content.append(content)
    file = tmp_path / "file"
    file.write_bytes(pickle.dumps(content))
    found = load_pickle(file)
    assert found[0] is found[1]
    assert found[2] is found


def python2_array(old: bytes = b"numpy.core.multiarray") -> bytes:
    """A dict {'data': uint8 [[1, 200], [3, 4]]} as Python 2 wrote it: every string is a byte string."""

    def text(raw: bytes) -> bytes:
        return b"U" + bytes([len(raw)]) + raw

    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R" + b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xff"
    dtype += b"J\xff\xff\xff\xffK\x00tb"
    start = b"c" + old + b"\n_reconstruct\n" + b"cnumpy\nndarray\n" + b"K\x00\x85" + text(b"b") + b"\x87R"
    state = b"(K\x01K\x02K\x02\x86" + dtype + b"\x89" + text(bytes([1, 200, 3, 4])) + b"tb"
    return b"\x80\x02}" + text(b"data") + start + state + b"s."


@pytest.mark.parametrize(("encoding", "key"), [("latin1", "data"), ("bytes", b"data")])
def test_python_2_pickle(tmp_path: Path, encoding: Any, key: str | bytes) -> None:
    file = tmp_path / "file"
    file.write_bytes(python2_array())
    np.testing.assert_array_equal(load_pickle(file, encoding=encoding)[key], np.array([[1, 200], [3, 4]], np.uint8))


class Hostile:
    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    ("function", "args"),
    [(os.system, ("touch owned",)), (eval, ("open('owned', 'w')",)), (open, ("owned", "w")), (np.load, ("owned",))],
)
def test_forbidden_globals_are_named_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int, function: Any, args: tuple[Any, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "file"
    file.write_bytes(pickle.dumps({"data": Hostile(function, *args)}, protocol=protocol))
    with pytest.raises(UserError) as caught:
        load_pickle(file)
    assert str(file) in caught.value.message
    assert function.__name__ in caught.value.message
    assert not (tmp_path / "owned").exists()


def test_truncation_anywhere_is_an_error(tmp_path: Path) -> None:
    whole = pickle.dumps({"data": np.arange(6), "labels": [1, 2]}, protocol=2)
    file = tmp_path / "file"
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        by_chance = whole[:length].endswith(b".")
        with pytest.raises(UserError, match="truncated or corrupt|was refused" if by_chance else "truncated"):
            load_pickle(file)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_damage_is_a_user_error_or_plain(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    whole = bytearray(pickle.dumps({"data": np.arange(6), "labels": [1, 2]}, protocol=2))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.getbasetemp() / "damaged"
    file.write_bytes(bytes(whole))
    with contextlib.suppress(UserError):
        load_pickle(file)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_of_plain_values_come_back(tmp_path: Path, protocol: int) -> None:
    """UniVL's annotations are such arrays."""
    arrays = {
        "text": np.array(["a", "bcd", None], dtype=object),
        "numbers": np.array([1.5, np.float64(2.5), 3], dtype=object),
        "grid": np.array([["a", "b"], ["c", "d"], ["e", "f"]], dtype=object),
        "none": np.array([], dtype=object),
    }
    file = tmp_path / "file"
    file.write_bytes(pickle.dumps(arrays, protocol=protocol))
    found = load_pickle(file)
    for name, array in arrays.items():
        assert found[name].dtype == object, name
        assert found[name].tolist() == array.tolist(), name


def test_code_in_an_array_of_objects_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(pickle.dumps({"transcript": np.array(["a", os.getcwd], dtype=object)}))
    with pytest.raises(UserError, match="was refused"):
        load_pickle(file)


OBJECT_DTYPE = b"cnumpy\ndtype\nU\x01OK\x00K\x01\x87R"


@pytest.mark.parametrize(
    "content",
    [
        b"cnumpy\ndtype\n.",
        b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x04\x00\x00\x00zlibtR.",
        b"cbuiltins\nbytes\n(J\xff\xff\xff\x7ftR.",
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR(K\x01K\x02\x85"
        + OBJECT_DTYPE
        + b"\x89U\x10"
        + struct.pack("<QQ", 1, 2)
        + b"tb.",
        b"Pother\n.",
        b"K\x01r\xff\xff\xff\x7f0.",
        b"cnumpy\ndtype\n}X\x04\x00\x00\x00kindX\x01\x00\x00\x00xsb.",
    ],
    ids=["bare function", "odd codec", "huge bytes", "object array", "persistent id", "huge memo", "patching"],
)
def test_admitted_functions_cannot_be_misused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    with pytest.raises(UserError, match="truncated or corrupt"):
        load_pickle(file)
    file.write_bytes(python2_array())
    assert load_pickle(file)["data"].shape == (2, 2)


def test_array_with_wrong_number_of_bytes(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(python2_array().replace(b"K\x02K\x02\x86", b"K\x02K\x7f\x86"))
    with pytest.raises(UserError, match=r"shape \(2, 127\)"):
        load_pickle(file)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Cannot read"):
        load_pickle(tmp_path / "absent")
