"""Feeds hostile files to every reader: ``nox -s fuzz``. Anything but the reader's own error is a find.

    python benchmarks/fuzz.py --runs 1000000

A reader gets files of two kinds: changed copies of good ones (flipped, cut, doubled and moved bytes, and words that
readers stumble over), and, for texts, content that hypothesis makes. A find is an exception that is no UserError, or a
file that takes more than `SECONDS`. Each kind of find is printed with its number and, with ``--out``, stored once; the
exit status is 1 if there are any.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import pickle
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from meltr.data.safe_pickle import index_pickle, load_pickle
from meltr.engine.checkpoints import load_training
from meltr.engine.stored_data import stored_data
from meltr.errors import UserError
from meltr.files import read_object
from meltr.folders.run_folder import RunFolder
from meltr.helps.record import Record
from meltr.report.runs import load_run
from meltr.settings import load_spec, read_yaml
from meltr.video import annotations
from meltr.video.annotations.parsing import read_json, read_json_lines, read_list, read_table
from meltr.video.frame_cache.layout import read_entries, read_failed, read_settings
from meltr.video.frames.media import decode
from meltr.video.text.wordpiece import read_vocabulary
from meltr.weights import read_weights

SECONDS = 20
"""Longest processor time that a small file may take."""

WORDS = (
    b"\x00", b"\xff", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"9" * 5000, b"1e999", b"NaN", b"-1", b"[" * 3000, b"{",
    b'"', b"\\ud800", b"\\u0000", b"&a [*a, *a]", b"*a", b"<<: ", b"!!python/name:os", b"\xef\xbb\xbf", b"inf", b"null",
    b"true", b"\r\n", b"\t", b",", b":", b"\x80\x05", b"\x94h\x00h\x00\x86", b"cos\nsystem\n", b"R", b".", b"\x96",
    b"PK\x03\x04", b"2020-99-99", b"0", b"99999999999999999999", b"../../etc/passwd", b"\xd8\x00",
)  # fmt: skip

Read = Callable[[Path], object]


class TooSlow(BaseException):
    """A reader took more than `SECONDS`."""


class Stopped(BaseException):
    """Ctrl-C or SIGTERM: print what was done so far."""


def changed(content: bytes, rng: random.Random) -> bytes:
    """Return a copy with one to six changes."""
    found = bytearray(content)
    for _ in range(rng.randint(1, 6)):
        at, length = rng.randrange(len(found) + 1), rng.choice((1, 1, 2, 4, 16, 200))
        kind = rng.randrange(7)
        if kind == 0 and found:
            found[at % len(found)] = rng.randrange(256)
        elif kind == 1:
            del found[at : at + length]
        elif kind == 2:
            found[at:at] = found[at : at + length] * rng.choice((1, 2, 30))
        elif kind == 3:
            found[at:at] = rng.choice(WORDS)
        elif kind == 4:
            found[at : at + length] = rng.randbytes(min(length, 16))
        elif kind == 5:
            del found[at:]
        elif found:
            other = rng.randrange(len(found))
            found[at : at + length] = found[other : other + length]
    return bytes(found)


def consumed(rows: Iterator[Any]) -> list[Any]:
    """Read an iterator to its end."""
    return list(rows)


def film(path: Path) -> bytes:
    """Return a video of five small frames; the ending of `path` says in which container."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mpeg4" if path.suffix == ".avi" else "libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for number in range(5):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((32, 32, 3), 40 * number, np.uint8), "rgb24")))
        output.mux(stream.encode())
    return path.read_bytes()


def samples(folder: Path) -> dict[str, tuple[str, bytes, Read]]:
    """Return name -> (file name, good content, reader)."""
    record = {"videos": [{"video_id": "v1", "category": 3}], "sentences": [{"video_id": "v1", "caption": "a dog"}]}
    lines = b'{"split": "train", "video": "a.mp4", "label": "x"}\n{"split": "test", "video": "b.mp4", "label": "x"}\n'
    table = b"label,youtube_id,time_start,time_end,split\nrunning,abc,1,11,train\n"
    spec = {"backbone": "toy", "task": "t", "dataset": "d", "train": {"lr": 0.1}, "losses": ["a", "b"], "seed": 0}
    stored = {"a": np.arange(6, dtype=np.float32), ("k", 1): [1, 2.5, "x" * 300], "s": {1, 2}, "n": None}
    arrays = io.BytesIO()
    np.savez_compressed(arrays, a=np.ones((3, 4), np.float32), b=np.zeros(5))
    array = io.BytesIO()
    np.save(array, np.ones((3, 4), np.float32))
    state = io.BytesIO()
    torch.save({"w": torch.ones(3), "b": torch.zeros(2, 2)}, state)
    from safetensors.torch import save

    pictures = {}
    for kind in ("png", "jpeg", "gif", "tiff", "webp", "bmp"):
        stream = io.BytesIO()
        Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).save(stream, kind)
        pictures[kind] = stream.getvalue()
    cache = {"format": 1, "settings": {"frames": 2}}
    vocabulary = "\n".join(["[PAD]", *(f"[unused{n}]" for n in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dog"])
    found: dict[str, tuple[str, bytes, Read]] = {
        "json": ("a.json", json.dumps(record).encode(), read_json),
        "json object": ("a.json", json.dumps(record).encode(), read_object),
        "json lines": ("a.jsonl", lines, lambda path: consumed(read_json_lines(path))),
        "csv": ("a.csv", table, lambda path: consumed(read_table(path, ("label", "time_start")))),
        "list": ("a.txt", b"one\ntwo\n", read_list),
        "gzip": ("a.tsv.gz", gzip.compress(table), read_list),
        "yaml": ("run.yaml", yaml.safe_dump(spec).encode(), read_yaml),
        "spec": ("run.yaml", yaml.safe_dump(spec).encode(), load_spec),
        "pickle": ("a.pkl", pickle.dumps(stored, protocol=2), load_pickle),
        "pickle of protocol 5": ("a.pkl", pickle.dumps(stored, protocol=5), load_pickle),
        "pickle index": ("a.pkl", pickle.dumps(stored, protocol=4), index_pickle),
        "torch": ("a.pt", state.getvalue(), read_weights),
        "safetensors": ("a.safetensors", save({"w": torch.ones(3)}), read_weights),
        "cache header": ("cache.json", json.dumps(cache).encode(), lambda path: read_settings(path.parent)),
        "cache failures": ("failed.jsonl", b'{"key": "a", "reason": "b"}\n', lambda path: read_failed(path.parent)),
        "cache index": ("shard-00000.json", SHARD, lambda path: read_entries(path.parent)),
        "vocabulary": ("vocab.txt", vocabulary.encode(), read_vocabulary),
        "record": ("helps.json", b'{"format": 1, "seeds": [0], "where": {}, "trials": {}}', Record.load),
        "training state": ("training.pt", state.getvalue(), load_training),
        "data of a run": (
            "data.json",
            b'{"meta": {"a": 1}, "left_out": {}}',
            lambda p: stored_data(RunFolder(p.parent)),
        ),
        "metrics": ("metrics.jsonl", METRICS, lambda path: load_run(path.parent)),
        "results": ("results.json", b'{"metric": "a", "seed": 1, "losses": ["x"]}', lambda path: load_run(path.parent)),
    }
    for kind, content in pictures.items():
        found[kind] = (f"a.{kind}", content, lambda path: decode(path, lambda total: (0,)))
    for ending in ("mp4", "mkv", "avi"):
        found[ending] = (f"a.{ending}", film(folder / f"good.{ending}"), lambda path: decode(path, lambda total: (0,)))
    for dataset, (name, content) in ANNOTATIONS.items():
        found[dataset] = (name, content, _corpus(dataset))
    found |= _features(array.getvalue(), arrays.getvalue(), stored)
    return found


SHARD = b'{"bytes": 0, "videos": {"a": {"spans": [[0, 10]], "shape": [2, 3], "file": "a.mp4", "bytes": 7}}}'
METRICS = b'{"kind": "train", "step": 1, "losses": {"a": 1.0}}\n{"kind": "outer", "step": 2}\n'
ANNOTATIONS = {
    "kinetics400": ("train.csv", b"label,youtube_id,time_start,time_end,split\nrunning,abc,1,11,train\n"),
    "youcook2": (
        "youcookii_annotations_trainval.json",
        b'{"database": {"v": {"subset": "training", "annotations": [{"segment": [1, 2.5], "sentence": "cut it"}]}}}',
    ),
    "msvd": ("train_qa.json", b'[{"id": 0, "video_id": 3, "question": "what?", "answer": "dog"}]'),
    "cmu-mosi": ("index.tsv", b"video\tsegment\twords\tintensity\tfold_standard\nv\t1\ta b\t1.5\ttrain\n"),
    "manifest": ("manifest.jsonl", b'{"split": "train", "video": "a.mp4", "start": 1, "end": 2, "label": "x"}\n'),
}


def _corpus(dataset: str) -> Read:
    def read(path: Path) -> object:
        task = annotations.layout(dataset).tasks[0]
        for file in annotations.layout(dataset).files:  # every file of the data set has this content
            for name in file.names[:1]:
                (path.parent / name).write_bytes(path.read_bytes())
        return annotations.read(dataset, task, path.parent, allow_missing=True)

    return read


def _features(array: bytes, arrays: bytes, stored: dict[Any, Any]) -> dict[str, tuple[str, bytes, Read]]:
    """Return the readers of UniVL's features, if that package is installed."""
    try:
        from meltr_univl.features.files import open_features
        from meltr_univl.features.reading import read_record
    except ImportError:
        return {}

    def all_of(path: Path) -> object:
        source = open_features(path)
        return source.features("a") if "a" in source else None

    dense = pickle.dumps({"a": np.ones((3, 4), np.float32)})
    return {
        "npy": ("a.npy", array, lambda path: all_of(path.parent)),
        "npz": ("a.npz", arrays, all_of),
        "features": ("a.pickle", dense, all_of),
        "feature record": ("features.json", b'{"format": 1, "width": 4, "rate": 1.5}', lambda p: read_record(p.parent)),
    }


def attempt(read: Read, path: Path, content: bytes) -> str | None:
    """Return what is wrong with a reader's answer to a file; None if it is right."""
    for other in os.listdir(path.parent):
        os.unlink(path.parent / other)
    path.write_bytes(content)
    signal.setitimer(signal.ITIMER_PROF, SECONDS, 1)
    try:
        read(path)
    except UserError:
        return None
    except TooSlow:
        return f"more than {SECONDS} seconds"
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} in {Path(where.filename).name}:{where.lineno}: {str(error)[:80]}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return None


@cache
def made_texts(count: int, seed: int) -> list[bytes]:
    """Return JSON that hypothesis makes, the same for every reader, since it takes longer than to read it."""
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    names = st.sampled_from(["videos", "video_id", "annotations", "segment", "subset", "spans", "key", "settings", "a"])
    values = st.recursive(
        scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4)
    )
    found: list[bytes] = []

    @settings(max_examples=count, database=None, derandomize=seed == 0, phases=[Phase.generate], deadline=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(values)
    def collect(value: object) -> None:
        found.append(json.dumps(value).encode())

    collect()
    return found


def main() -> int:
    """Run the fuzzer and print what it did."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20_000, help="files in all")
    parser.add_argument("--seconds", type=float, help="processor time in all, in equal shares for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="readers whose name contains this text")
    parser.add_argument("--out", type=Path, help="folder for the files that were found")
    asked = parser.parse_args()
    signal.signal(signal.SIGPROF, _too_slow)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    warnings.simplefilter("ignore")
    av.logging.set_level(None)
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as scratch:
        folder = Path(scratch, "case")
        folder.mkdir()
        readers = {name: each for name, each in samples(folder).items() if asked.only is None or asked.only in name}
        began, finds, done = time.perf_counter(), Counter[str](), Counter[str]()
        try:
            for name, (file, good, read) in readers.items():
                problem = None if file == "run.yaml" or name in ANNOTATIONS else attempt(read, folder / file, good)
                if problem is not None and name not in ("cache index", "metrics", "results"):
                    raise SystemExit(f"{name}: the good file is refused: {problem}")
                until = float("inf") if asked.seconds is None else time.process_time() + asked.seconds / len(readers)
                for number, content in enumerate(_cases(good, asked.runs // len(readers), asked.seed)):
                    if time.process_time() > until:
                        break
                    problem = attempt(read, folder / file, content)
                    done[name] += 1
                    if problem is None:
                        continue
                    finds[f"{name}: {problem}"] += 1
                    if asked.out is not None and finds[f"{name}: {problem}"] == 1:
                        asked.out.mkdir(parents=True, exist_ok=True)
                        (asked.out / f"{name.replace(' ', '-')}-{asked.seed}-{number}").write_bytes(content)
        except Stopped:
            print("stopped before the end")
        for what, count in finds.most_common():
            print(f"{count:>7} {what}")
        spent = time.perf_counter() - began
        print(
            f"{len(done)} readers, {done.total():,} files in {spent:,.0f} s, "
            f"{finds.total():,} finds of {len(finds)} kinds"
        )
    return 1 if finds else 0


def _cases(good: bytes, count: int, seed: int) -> Iterator[bytes]:
    made = min(300, count // 10) if good[:1] in (b"{", b"[") else 0
    if made:
        yield from made_texts(made, seed)
    rng = random.Random(seed)
    corpus = [good]
    for _ in range(count - made):
        content = changed(rng.choice(corpus), rng)
        if len(corpus) < 50 and rng.random() < 0.02:
            corpus.append(content)
        yield content


def _too_slow(number: int, frame: object) -> None:
    raise TooSlow


def _stop(number: int, frame: object) -> None:
    raise Stopped


if __name__ == "__main__":
    sys.exit(main())
