"""What a file may cost: each hostile file ends soon, in an error that names it."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

from meltr import limits
from meltr.data.safe_pickle import index_pickle, load_pickle
from meltr.errors import UserError
from meltr.limits import Npz, UnreadableError, file_text, from_json, from_yaml, npy_array
from meltr.weights import read_weights


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("9" * 5000, "Exceeds the limit"),
        ("1e999", "beyond floating point"),
        ("NaN", "the number NaN"),
        ("-Infinity", "the number -Infinity"),
        (r'{"a": "\u0000"}', "NUL"),
        (r'["\ud800"]', "surrogate"),
        (r'{"\udfff": 1}', "surrogate"),
        ('{"a": 1,}', "not valid JSON"),
        (b"\xff", "not UTF-8"),
        ("", "not valid JSON"),
    ],
)
def test_json_that_is_refused(text, problem):
    with pytest.raises(UnreadableError, match=rf"a\.json.*{problem}"):
        from_json(text, "a.json")


@pytest.mark.parametrize("text", [r'"\ud83d\ude00"', r'"\\u0000"', "1e308", "[1, 2.5, null]", r'"\ud7ff"'])
def test_json_that_is_right(text):
    import json

    assert from_json(text, "a.json") == json.loads(text)


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (LAUGHS, "values with its aliases written out"),
        ("a: &a [*a]", "refers to itself"),
        ("[" * 5000, "nested too deeply"),
        ("a: " + "- " * 3000, "nested too deeply|not valid YAML"),
        ("a: 1\nb: 2\na: 3", "the key 'a' occurs twice"),
        ("a: {x: 1, x: 2}", "the key 'x' occurs twice"),
        ("a: " + "9" * 5000, "Exceeds the limit"),
        ("a: !!python/object/apply:os.system [ls]", "not valid YAML"),
        ("? [1, {}]\n: 2", "not valid YAML"),
        ("a: !!timestamp 2020-99-99", "not valid YAML"),
        ("x" * 2_000_000, "more than"),
    ],
)
def test_yaml_that_is_refused(text, problem):
    with pytest.raises(UnreadableError, match=rf"run\.yaml.*{problem}"):
        from_yaml(text, "run.yaml")


def test_yaml_that_is_right():
    assert from_yaml("a: &x {b: 1}\nc: *x\nd: {<<: *x, b: 2}\ne: 2020-01-01", "run.yaml") == {
        "a": {"b": 1},
        "c": {"b": 1},
        "d": {"b": 2},
        "e": "2020-01-01",
    }


def test_a_gzip_file_that_unpacks_to_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "UNPACKED_BYTES", 10_000)
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(bytes(10_001)))
    with pytest.raises(UnreadableError, match="unpacks to more than 10,000 bytes"):
        file_text(tmp_path / "a.tsv.gz")
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(b"a" * 9_999))
    assert file_text(tmp_path / "a.tsv.gz") == "a" * 9_999
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(b"a" * 9_999)[:-9])
    with pytest.raises(UnreadableError, match="not a complete gzip"):
        file_text(tmp_path / "a.tsv.gz")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipes_and_folders_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, problem in ((tmp_path / "pipe", "not a regular file"), (tmp_path, "is a folder")):
        for read in (file_text, load_pickle, index_pickle, npy_array, Npz):
            with pytest.raises(UserError, match=problem):
                read(path)
    with pytest.raises(UnreadableError, match="cannot be read"):
        file_text(tmp_path / ("x" * 300))


def shared_tuples(depth: int) -> bytes:
    """Opcodes of a tuple of which each part is the part before, twice."""
    return b"\x80\x04)" + b"\x94" + b"".join(b"h%c" % n + b"h%c" % n + b"\x86\x94" for n in range(depth))


HOSTILE = {
    "shared tuples as a key": b"}" + shared_tuples(60)[2:] + b"K\x01s.",
    "shared tuples in a dict of several": b"}(" + shared_tuples(60)[2:] + b"K\x01u.",
    "shared tuples in a set": b"\x80\x04\x8f(" + shared_tuples(60)[2:] + b"\x90.",
    "shared tuples in a frozenset": b"\x80\x04(" + shared_tuples(60)[2:] + b"\x91.",
    "shared tuples as a dtype": b"cnumpy\ndtype\n" + shared_tuples(60)[2:] + b"\x85R.",
    "shared tuples alone": shared_tuples(60) + b".",
    "a very deep key": b"}" + b")" + b"\x85" * 200_000 + b"K\x01s.",
    "an array of a named size": b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b"abc.",
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("read", [load_pickle, index_pickle])
def test_small_pickles_that_would_not_end_are_refused(tmp_path, name, read):
    (tmp_path / "a.pkl").write_bytes(HOSTILE[name])
    with pytest.raises(UserError, match=r"a\.pkl is truncated or corrupt"):
        read(tmp_path / "a.pkl")


def test_pickles_with_shared_parts_and_tuples_as_keys_are_right(tmp_path):
    word = ("a", 1)
    content = {word: [word, word], ("b", word): {word, ("c",)}, "s": frozenset([word]), "raw": bytearray(b"xyz")}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol=5))
    assert load_pickle(tmp_path / "a.pkl") == content


def test_an_npz_that_unpacks_to_much_is_refused_and_others_are_read(tmp_path, monkeypatch):
    arrays = {"small": np.arange(6.0).reshape(2, 3), "fortran": np.asfortranarray(np.arange(6).reshape(2, 3))}
    np.savez_compressed(tmp_path / "a.npz", large=np.zeros(100_000), **arrays)
    monkeypatch.setattr(limits, "UNPACKED_BYTES", 10_000)
    archive = Npz(tmp_path / "a.npz")
    for name, array in arrays.items():
        np.testing.assert_array_equal(archive.array(name), array)
    with pytest.raises(UnreadableError, match=r"a\.npz, 'large' unpacks to 800,128 bytes"):
        archive.array("large")


@pytest.mark.parametrize("header", ["{'descr': '<f8', 'fortran_order': False, 'shape': (10**12,)}", "{(((", "{'a': 1}"])
def test_an_npy_whose_header_lies_is_refused(tmp_path, header):
    raw = header.replace("10**12", "1000000000000").ljust(117).encode() + b"\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(raw).to_bytes(2, "little") + raw + bytes(16))
    with pytest.raises(UnreadableError, match=r"a\.npy.*truncated or corrupt"):
        npy_array(tmp_path / "a.npy")


def test_an_npy_of_objects_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UnreadableError, match="objects"):
        npy_array(tmp_path / "a.npy")


def test_torch_files_are_not_compressed(tmp_path):
    torch.save({"w": torch.zeros(100_000)}, tmp_path / "plain.pt")
    assert read_weights(tmp_path / "plain.pt")["w"].shape == (100_000,)
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "a.pt", "w") as packed:
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry), compress_type=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match=r"unpacks to [\d,]+ bytes from"):
        read_weights(tmp_path / "a.pt")


def test_the_largest_file_that_is_read_is_stated(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"x" * 11)
    with pytest.raises(UnreadableError, match="more than 10 bytes"):
        file_text(tmp_path / "a.txt", most=10)
    assert io.StringIO(file_text(tmp_path / "a.txt", most=11)).read() == "x" * 11


def test_numbers_that_are_not_finite_are_accepted_in_files_of_runs(tmp_path):
    from meltr.files import read_object

    (tmp_path / "results.json").write_text('{"a": NaN, "b": "NaN", "c": Infinity}')
    found = read_object(tmp_path / "results.json")
    assert found["a"] != found["a"]
    assert found["b"] != found["b"]
    assert found["c"] == float("inf")


def test_a_run_that_names_a_loss_twice_is_refused(tmp_path):
    from meltr.settings import load_spec

    (tmp_path / "run.yaml").write_text("backbone: a\ntask: b\ndataset: c\nlosses: [ce, ce]\n")
    with pytest.raises(UserError, match=r"(?s)run\.yaml.*losses: 'ce' occurs twice"):
        load_spec(tmp_path / "run.yaml")


def test_a_small_file_costs_little_memory(tmp_path):
    """The limits must not be allocated in advance."""
    import tracemalloc

    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(b"{}"))
    np.savez(tmp_path / "a.npz", a=np.zeros(3))
    tracemalloc.start()
    file_text(tmp_path / "a.json")
    file_text(tmp_path / "a.json.gz")
    Npz(tmp_path / "a.npz").array("a")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000
