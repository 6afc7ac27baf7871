"""Pickles with long texts, of which only the places are read."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meltr.data.safe_pickle import ArraySpan, Span, index_pickle, load_pickle
from meltr.errors import UserError

TEXT = st.text(max_size=40) | st.binary(max_size=40)
CONTENT = st.dictionaries(st.text(max_size=24), st.lists(TEXT, max_size=4), max_size=6)


def looked_up(value: Any, raw: bytes, like: Any) -> Any:
    """`value` with its spans replaced by the bytes they name, as text where `like` has text."""
    if isinstance(value, Span):
        return value.read(raw).decode("utf-8", "surrogatepass") if isinstance(like, str) else value.read(raw)
    if isinstance(value, list):
        return [looked_up(*each) for each in zip(value, [raw] * len(value), like, strict=True)]
    if isinstance(value, dict):
        pairs = zip(value.items(), like.items(), strict=True)
        return {looked_up(key, raw, k): looked_up(item, raw, i) for (key, item), (k, i) in pairs}
    return value


@settings(max_examples=80, deadline=None)
@given(
    content=CONTENT, protocol=st.integers(3, pickle.HIGHEST_PROTOCOL), shortest=st.integers(30, 60), big=st.booleans()
)
def test_the_spans_are_the_long_texts(tmp_path_factory, content, protocol, shortest, big) -> None:
    if big:
        content = {**content, "big": ["x" * 70_000, b"y" * 70_000, "x" * 70_000]}  # outside of the pickle's frames
    file = tmp_path_factory.getbasetemp() / "index"
    file.write_bytes(pickle.dumps(content, protocol=protocol))
    found = index_pickle(file, shortest=shortest)
    assert looked_up(found, file.read_bytes(), content) == content == load_pickle(file)
    kept = [each for value in found.values() for each in value if not isinstance(each, Span)]
    # Texts below 256 bytes have an opcode of their own from protocol 4 on, and bytes from 3 on.
    assert all(len(each) < 256 for each in kept)
    if big:
        assert all(isinstance(each, Span) for each in found["big"])


def test_texts_just_long_enough(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(pickle.dumps(["a" * 299, "a" * 300, "ä" * 150]))
    short, long, wide = index_pickle(file, shortest=300)
    assert short == "a" * 299
    assert long.read(file.read_bytes()) == b"a" * 300
    assert wide.read(file.read_bytes()).decode() == "ä" * 150


def test_a_long_text_may_be_a_key(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(pickle.dumps({"a" * 300: 1, "b" * 300: 2, "c": 3}))
    first, second, short = index_pickle(file)
    assert [each.read(file.read_bytes()) for each in (first, second)] == [b"a" * 300, b"b" * 300]
    assert short == "c"


def test_nothing_forbidden_is_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "touched",)

    file = tmp_path / "evil.pkl"
    file.write_bytes(pickle.dumps({"a": ["x" * 500], "b": Evil()}))
    with pytest.raises(UserError, match=r"evil\.pkl was refused: it asks for"):
        index_pickle(file)
    assert not (tmp_path / "touched").exists()


def test_broken_files_are_named(tmp_path: Path) -> None:
    whole = pickle.dumps({"a": ["x" * 1000]})
    file = tmp_path / "cut.pkl"
    for content in (b"", whole[:500], whole[:500] + pickle.STOP, whole[:-1], b"<html>no pickle</html>."):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"cut\.pkl is truncated or corrupt"):
            index_pickle(file)
    with pytest.raises(UserError, match=r"Cannot read .*absent"):
        index_pickle(tmp_path / "absent")
    file.write_bytes(pickle.dumps({"a": np.zeros(125)}, protocol=4).replace(b"K\x7d\x85", b"K\x7e\x85"))
    with pytest.raises(UserError, match=r"shape \(126,\)"):
        index_pickle(file)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_large_arrays_are_read_one_by_one(tmp_path: Path, protocol: int) -> None:
    arrays = {
        "plain": np.arange(300.0).reshape(3, 100),
        "fortran": np.asfortranarray(np.arange(400, dtype=np.float32).reshape(20, 20)),
        "turned": np.arange(240).reshape(4, 6, 10).transpose(1, 0, 2),
        "frozen": np.frombuffer(np.arange(200, dtype=np.float32).tobytes(), dtype=np.float32),
        "small": np.arange(3),
    }
    file = tmp_path / "file"
    file.write_bytes(pickle.dumps(arrays, protocol=protocol))
    found, raw = index_pickle(file), file.read_bytes()
    assert [name for name, each in found.items() if isinstance(each, ArraySpan)] == list(arrays)[:4]
    for name, array in arrays.items():
        read = found[name].read(raw) if isinstance(found[name], ArraySpan) else found[name]
        assert read.dtype == array.dtype, name
        assert np.array_equal(read, array), name
