"""Hostile files and the answer that each gets: the table of the security page.

``python packages/meltr-core/tests/helpers/hostile_files.py`` writes it into docs/security.md.
"""

from __future__ import annotations

import gzip
import io
import os
import pickle
import re
import struct
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml
from PIL import Image

from meltr.data.safe_pickle import load_pickle
from meltr.engine.checkpoints import load_training
from meltr.errors import UserError
from meltr.folders.run_folder import RunFolder
from meltr.limits import Npz, npy_array
from meltr.settings import load_spec, read_yaml
from meltr.video.annotations.parsing import read_json, read_json_lines, read_list
from meltr.video.frames.media import decode
from meltr.weights import read_weights
from places import ROOT
from video_files import write_video

BEGIN, END = "<!-- hostile files: begin -->\n", "<!-- hostile files: end -->\n"
PAGE = ROOT / "docs" / "security.md"


class Hostile(NamedTuple):
    """A hostile file.

    Args:
        what: In words.
        name: Of the file.
        content: Its bytes, or a function that makes it at a path.
        read: Its reader.
    """

    what: str
    name: str
    content: bytes | Callable[[Path], object]
    read: Callable[[Path], object]


class Runs:
    """Unpickled, it would run a command."""

    def __reduce__(self) -> tuple[object, ...]:
        return (os.system, ("touch ran",))


def shared_tuples(depth: int) -> bytes:
    """Return opcodes of a tuple of which each part is the part before, twice."""
    return b")\x94" + b"".join(b"h%c" % n + b"h%c" % n + b"\x86\x94" for n in range(depth))


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9))


def saved(content: object) -> bytes:
    """Return what torch.save writes."""
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def deflated() -> bytes:
    """Return a file of torch whose parts are compressed, which torch never does."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved({"w": torch.zeros(100_000)}))) as plain, zipfile.ZipFile(stream, "w") as out:
        for entry in plain.infolist():
            out.writestr(entry.filename, plain.read(entry), compress_type=zipfile.ZIP_DEFLATED)
    return stream.getvalue()


def swollen() -> bytes:
    """Return an npz whose directory says that its array has 2 GiB."""
    stream = io.BytesIO()
    np.savez_compressed(stream, a=np.zeros(1000))
    content = bytearray(stream.getvalue())
    struct.pack_into("<I", content, content.index(b"PK\x01\x02") + 24, 2**31)
    return bytes(content)


def npy(header: str) -> bytes:
    """Return an npy file with this header and 16 bytes."""
    raw = header.ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(raw).to_bytes(2, "little") + raw + bytes(16)


def png(width: int, height: int) -> bytes:
    """Return the start of a grey PNG of this size."""
    found = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(b""))):
        found += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return found


def picture(kind: str, **settings: object) -> bytes:
    """Return a small picture of floating-point numbers."""
    stream = io.BytesIO()
    Image.fromarray(np.ones((4, 4), np.float32)).save(stream, kind, **settings)
    return stream.getvalue()


def cut(path: Path) -> None:
    """Write a film that lacks its last third."""
    write_video(path, 30)
    os.truncate(path, path.stat().st_size * 2 // 3)


def first_frame(path: Path) -> object:
    """Decode the first frame."""
    return decode(path, lambda total: (0,))


def lines(path: Path) -> object:
    """Read all JSON lines."""
    return list(read_json_lines(path))


def array(path: Path) -> object:
    """Read the array of an npz file."""
    return Npz(path).array("a")


def spec_of_folder(path: Path) -> object:
    """Read the settings of a run from its folder."""
    return RunFolder(path.parent).read_spec()


def results_of_folder(path: Path) -> object:
    """Read the results of a run from its folder."""
    return RunFolder(path.parent).read_results()


SPEC = yaml.safe_dump({"backbone": "toy", "task": "t", "dataset": "d"})

HOSTILE = (
    Hostile("JSON nested 100,000 deep", "train.json", b"[" * 100_000, read_json),
    Hostile("JSON with a number of 5,000 digits", "train.json", b'{"a": ' + b"9" * 5000 + b"}", read_json),
    Hostile("JSON with a number beyond floating point", "train.jsonl", b'{"start": 1e999}\n', lines),
    Hostile("JSON with NaN", "train.jsonl", b'{"start": NaN}\n', lines),
    Hostile("JSON with NUL in a text", "train.json", rb'{"video": "a\u0000.mp4"}', read_json),
    Hostile("JSON with half a surrogate pair", "train.json", rb'{"video": "\ud800"}', read_json),
    Hostile("a text in Latin-1", "train.txt", "café\n".encode("latin-1"), read_list),
    Hostile("256 KiB of gzip that unpack to 256 MiB", "train.tsv.gz", gzip.compress(bytes(2**20)) * 257, read_list),
    Hostile("a gzip file cut short", "train.tsv.gz", gzip.compress(b"a" * 1000)[:-9], read_list),
    Hostile("a folder where a file belongs", "train.json", Path.mkdir, read_json),
    Hostile("a named pipe", "train.json", os.mkfifo, read_json),
    Hostile("a link to itself", "train.json", lambda path: path.symlink_to(path.name), read_json),
    Hostile("YAML whose aliases multiply", "run.yaml", LAUGHS.encode(), read_yaml),
    Hostile("YAML that refers to itself", "run.yaml", b"a: &a [*a]", read_yaml),
    Hostile("YAML nested 5,000 deep", "run.yaml", b"[" * 5000, read_yaml),
    Hostile("YAML with a key twice", "run.yaml", b"seed: 1\nseed: 2\n", read_yaml),
    Hostile("YAML that calls a function", "run.yaml", b"a: !!python/object/apply:os.system [ls]", read_yaml),
    Hostile("settings of a wrong type", "run.yaml", f"{SPEC}seed: [0]\n".encode(), load_spec),
    Hostile("settings in Latin-1 in a run folder", "run.yaml", "# café\n".encode("latin-1"), spec_of_folder),
    Hostile("results cut short", "results.json", b'{"test": {"top1": 9', results_of_folder),
    Hostile("results that are a list", "results.json", b"[]", results_of_folder),
    Hostile("a state of a run that is a web page", "training.pt", b"<html>", load_training),
    Hostile("a pickle that runs a command", "features.pickle", pickle.dumps(Runs()), load_pickle),
    Hostile(
        "a pickle of 369 bytes that never ends", "a.pickle", b"\x80\x04}" + shared_tuples(60) + b"K\x01s.", load_pickle
    ),
    Hostile(
        "a pickle of 15 bytes that names 1 TiB",
        "a.pickle",
        b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b"abc.",
        load_pickle,
    ),
    Hostile("weights that run a command", "weights.pt", saved({"w": Runs()}), read_weights),
    Hostile("weights whose parts are compressed", "weights.pt", deflated(), read_weights),
    Hostile("weights that are a web page", "weights.pt", b"<!DOCTYPE html><html>404</html>", read_weights),
    Hostile("safetensors whose header has 8 EiB", "w.safetensors", (2**63).to_bytes(8, "little"), read_weights),
    Hostile(
        "safetensors whose tensor lies beyond the file",
        "w.safetensors",
        (60).to_bytes(8, "little") + b'{"w":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}     ',
        read_weights,
    ),
    Hostile(
        "npy whose header names 8 TB",
        "a.npy",
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,)}"),
        npy_array,
    ),
    Hostile("npy whose header is no header", "a.npy", npy("{((("), npy_array),
    Hostile("npz that unpacks to 2 GiB", "a.npz", swollen(), array),
    Hostile("a picture of 50,000 x 50,000 pixels", "a.png", png(50_000, 50_000), first_frame),
    Hostile("a picture that is a web page", "a.jpg", b"<html>404</html>", first_frame),
    Hostile("a picture of floating-point numbers", "a.tiff", picture("TIFF"), first_frame),
    Hostile("a film without its end", "a.mp4", cut, first_frame),
    Hostile("a list of other files named as a film", "a.mp4", b"ffconcat version 1.0\nfile b.mp4\n", first_frame),
    Hostile("a playlist named as a film", "a.mp4", b"#EXTM3U\n#EXTINF:1,\nb.mp4\n#EXT-X-ENDLIST\n", first_frame),
    Hostile("a named pipe as a film", "a.mp4", os.mkfifo, first_frame),
    Hostile("an empty film", "a.mp4", b"", first_frame),
)


def answer(hostile: Hostile, folder: Path) -> str:
    """Return the first line of what the reader says to the file; AssertionError if it reads it."""
    path = folder / hostile.name
    if callable(hostile.content):
        hostile.content(path)
    else:
        path.write_bytes(hostile.content)
    try:
        found = hostile.read(path)
    except UserError as error:
        said = error.message.replace(f"{folder}{os.sep}", "").splitlines()
        assert hostile.name in " ".join(said), f"{hostile.what}: {said}"
        return said[0] if len(said) == 1 or not said[0].endswith(":") else f"{said[0]} {said[1].strip()}"
    raise AssertionError(f"{hostile.what}: read as {found!r}")


def row(hostile: Hostile, said: str) -> str:
    """Return a row of the table."""
    said = re.sub(r"[|`<>]", lambda found: "'" if found[0] == "`" else f"\\{found[0]}", said)
    return f"| {hostile.what} | {said} |"


def table() -> str:
    """Return the table of the page: each file with its answer."""
    rows = ["| file | answer |", "| --- | --- |"]
    for hostile in HOSTILE:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row(hostile, answer(hostile, Path(folder))))
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}{table()}{END}{rest.partition(END)[2]}", encoding="utf-8")
    sys.exit(0)
