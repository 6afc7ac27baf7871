"""Beds on real data of files: CMU-MOSI, POM and CIFAR-100, in the folder ``data`` of ``MELTR_SHARED``.

The files are packed by hand from public sources and are not part of a package. A bed whose files are missing is
skipped, and says where they belong.
"""

from __future__ import annotations

import csv
import gzip
import io
import os
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from meltr.errors import UserError
from meltr.helps.beds import Bed, Kind, Task
from meltr.helps.real import shuffled, stacked
from meltr.limits import Npz, UnreadableError, file_bytes
from meltr.seeding import derive

Array = NDArray[np.float32]

RATINGS = (15, 0, 7, 8, 4, 5, 6, 1)
"""Ratings of POM that are the primary task, in turn: seed s has rating s modulo their number."""


def place(*parts: str) -> Path:
    """Return a file of the real data; `MELTR_SHARED` names the folder, ``../shared`` if it is not set."""
    return Path(os.environ.get("MELTR_SHARED", "../shared"), "data", *parts)


FILES = {
    "mosi": ("mosi/index.tsv.gz", "mosi/features.npz"),
    "pom": ("pom/train_valid.npz",),
    "cifar100": ("cifar100/train_0.npz", "cifar100/test.npz"),
}
"""Files of every data set."""


def missing(data: str) -> str | None:
    """Return what a data set lacks and where it belongs; None if it is there."""
    absent = [str(place(name)) for name in FILES[data] if not place(name).is_file()]
    return f"{' and '.join(absent)} not found; MELTR_SHARED names the folder above 'data'" if absent else None


def _arrays(name: str, wanted: Sequence[str]) -> list[NDArray[Any]]:
    """Return arrays of an archive.

    Raises:
        UserError: If the archive or an array is missing or damaged.
    """
    archive = Npz(place(name))
    absent = [each for each in wanted if each not in list(archive)]
    if absent:
        raise UserError(f"{place(name)} lacks the arrays {absent}", "Use another folder: set MELTR_SHARED.")
    return [archive.array(each) for each in wanted]


def _standard(values: NDArray[Any], training: NDArray[Any]) -> Array:
    """Return values with mean 0 and deviation 1 on the training rows."""
    rows = values[training]
    return np.asarray((values - rows.mean(0)) / (rows.std(0) + 1e-6), np.float32)


@cache
def _utterances() -> tuple[list[dict[str, str]], Array]:
    path = place("mosi/index.tsv.gz")
    try:
        text = gzip.decompress(file_bytes(path)).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UnreadableError(path, f"cannot be read: {error}") from error
    (audio,) = _arrays("mosi/features.npz", ["audio"])
    return list(csv.DictReader(io.StringIO(text), delimiter="\t")), np.asarray(audio, np.float32)


def _words(rows: Sequence[dict[str, str]], training: NDArray[Any]) -> Array:
    """Return TF-IDF of the words that at least four training utterances contain, each row of length 5."""
    said = [row["words"].split() for row in rows]
    counts = Counter(word for number in training for word in set(said[number]))
    known = {word: place for place, word in enumerate(sorted(word for word, own in counts.items() if own >= 4))}
    found = np.zeros((len(rows), len(known)), np.float32)
    for number, words in enumerate(said):
        for word in words:
            if word in known:
                found[number, known[word]] = np.log(len(training) / counts[word])
    return np.asarray(5 * found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-6), np.float32)


def mosi(seeds: Sequence[int]) -> Bed:
    """CMU-MOSI, standard folds: the sentiment from words and audio; six helpers on the same utterances."""
    rows, audio = _utterances()
    fold = np.array([row["fold_standard"] for row in rows])
    train, valid, test = (np.flatnonzero(fold == name) for name in ("train", "valid", "test"))
    heard = np.clip(_standard(audio, train), -4, 4)
    inputs = np.concatenate([_words(rows, train), 0.3 * heard], 1)
    sentiment = np.array([float(row["intensity"]) for row in rows], np.float32)
    seconds = np.array([np.log(float(row["end"]) - float(row["start"]) + 0.1) for row in rows])
    length = np.array([np.log(1 + len(row["words"].split())) for row in rows])
    speakers = {name: place for place, name in enumerate(sorted({rows[number]["video"] for number in train}))}
    speaker = np.array([speakers.get(row["video"], 0) for row in rows], np.int64)
    orders, noise = [], []
    for seed in seeds:
        generator = np.random.default_rng(derive(seed, "bed"))
        order = np.concatenate([generator.permutation(train), valid, test])
        orders.append(order)
        noise.append(shuffled(generator, sentiment[order], len(train)))
    ordered = np.stack(orders)

    def column(values: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(np.asarray(values[ordered], np.float32)[..., None])

    first = 4 + len(speakers)
    last = first + audio.shape[1]
    tasks = [
        Task("sentiment", "absolute_error", (0, 1), column(sentiment)),
        Task("positive", "binary_cross_entropy", (1, 2), column(sentiment >= 0)),
        Task("duration", "squared_error", (2, 3), column(_standard(seconds, train))),
        Task("words", "squared_error", (3, 4), column(_standard(length, train))),
        Task("video", "cross_entropy", (4, first), torch.from_numpy(speaker[ordered])),
        Task("audio", "squared_error", (first, last), torch.from_numpy(heard[ordered])),
        Task("noise", "squared_error", (last, last + 1), stacked(noise)[..., None]),
    ]
    return Bed(
        "mosi",
        "hurt",
        "CMU-MOSI: sentiment; helpers positive, duration, words, video, audio, random.",
        "MAE",
        list(seeds),
        torch.from_numpy(np.asarray(inputs, np.float32)[ordered]),
        tasks,
        len(train),
        validation=len(valid),
        labelled=0,
        outputs=last + 1,
        hidden=48,
        epochs=12,
        batch_size=32,
        lr=4e-4,
    )


@cache
def _speakers() -> tuple[Array, Array]:
    """Return mean and deviation over time of the features, shape (700, 168), and the ratings, shape (700, 17)."""
    features, ratings = [], []
    for part in ("train", "valid"):
        audio, video, rated = _arrays("pom/train_valid.npz", [f"audio_{part}", f"video_{part}", f"y_{part}"])
        features.append(np.concatenate([_over_time(audio), _over_time(video)], 1))
        ratings.append(rated)
    return np.concatenate(features).astype(np.float32), np.concatenate(ratings).astype(np.float32)


def _over_time(values: NDArray[Any]) -> NDArray[Any]:
    """Return mean and deviation over the steps that are there (a row of zeros is missing)."""
    there = np.abs(values).sum(2, keepdims=True) > 0
    count = np.maximum(there.sum(1), 1)
    mean = (values * there).sum(1) / count
    square = (values * values * there).sum(1) / count
    return np.concatenate([mean, np.sqrt(np.maximum(square - mean * mean, 0))], 1)


def pom(seeds: Sequence[int], *, contrary: bool = False) -> Bed:
    """POM: one rating of a speaker; the other sixteen ratings help, and if wanted one contradicts and one is random.

    Args:
        seeds: One number per copy.
        contrary: Add two losses on the primary output: its negated rating, and its ratings in random order.
    """
    features, ratings = _speakers()
    training = 350
    inputs, wanted = [], []
    for seed in seeds:
        generator = np.random.default_rng(derive(seed, "bed"))
        order, known = generator.permutation(len(features)), np.arange(training)
        main = RATINGS[seed % len(RATINGS)]
        own = ratings[order][:, [main, *(place for place in range(17) if place != main)]]
        own = _standard(own, known)
        if contrary:
            own = np.concatenate([own, -own[:, :1], shuffled(generator, own[:, :1], training)], 1)
        inputs.append(np.clip(_standard(features[order], known), -4, 4))
        wanted.append(own)
    targets = stacked(wanted)
    names = ["rating", *(f"rating {place}" for place in range(1, 17))] + (["contrary", "random"] if contrary else [])
    tasks = [
        Task(name, "squared_error", (place, place + 1) if place < 17 else (0, 1), targets[..., place : place + 1])
        for place, name in enumerate(names)
    ]
    more = ", and two that contradict it" if contrary else ""
    return Bed(
        "pom-contrary" if contrary else "pom",
        "contradictory" if contrary else "neutral",
        f"POM: one rating of 350 speakers; sixteen other ratings{more}.",
        "MSE",
        list(seeds),
        stacked(inputs),
        tasks,
        training,
        validation=100,
        labelled=0,
        outputs=17,
        epochs=36,
        batch_size=32,
        lr=4e-4,
    )


@cache
def _photos() -> tuple[Array, Array, NDArray[np.int64], NDArray[np.int64]]:
    """Return 96 principal components of 10,000 training and 4,000 test photos, and their fine and coarse labels."""
    train, test = (_unpacked(name) for name in FILES["cifar100"])
    small = [_halved(pixels) for pixels in (train[0], test[0][:4000])]
    mean = small[0].mean(0)
    _, lengths, axes = np.linalg.svd(small[0][:6000] - mean, full_matrices=False)
    scale = np.sqrt(lengths[:96] / 6000**0.5) * 2
    parts = [np.asarray((each - mean) @ axes[:96].T / scale, np.float32) for each in small]
    fine, coarse = (np.concatenate([train[number], test[number][:4000]]).astype(np.int64) for number in (1, 2))
    return parts[0], parts[1], fine, coarse


def _unpacked(name: str) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    from PIL import Image

    packed, ends, fine, coarse = _arrays(name, ["webp", "ends", "fine", "coarse"])
    pictures, start = [], 0
    for end in ends.tolist():
        picture = Image.open(io.BytesIO(packed[start:end].tobytes())).convert("RGB")
        pictures.append(np.asarray(picture).reshape(-1, 32, 32, 3))
        start = end
    return np.concatenate(pictures), fine, coarse


def _halved(pixels: NDArray[Any]) -> Array:
    """Return photos of 16x16 pixels, channels first, in 0..1, one row each."""
    blocks = pixels.reshape(-1, 16, 2, 16, 2, 3).astype(np.float32).mean((2, 4)) / 255
    return np.ascontiguousarray(blocks.transpose(0, 3, 1, 2)).reshape(len(pixels), -1)


def cifar(seeds: Sequence[int], *, few: bool) -> Bed:
    """CIFAR-100, principal components of small photos.

    Args:
        seeds: One number per copy.
        few: True: 100 classes, 1,200 labels, coarse classes of 6,000 photos as helper; False: the 20 coarse classes of
            2,500 photos, fine classes as helper. Random classes and a part of the inputs are helpers of both.
    """
    train, test, fine, coarse = _photos()
    training, validation = (6000 if few else 2500), 600
    inputs, small, large, noise = [], [], [], []
    for seed in seeds:
        generator = np.random.default_rng(derive(seed, "bed"))
        chosen = generator.permutation(len(train))[: training + validation]
        order = np.concatenate([chosen, np.arange(len(train), len(fine))])
        inputs.append(np.concatenate([train[chosen], test]))
        small.append(fine[order])
        large.append(coarse[order])
        noise.append(shuffled(generator, coarse[order], training))
    seen = stacked(inputs)
    kind: Kind = "cross_entropy"
    fine_task = Task("fine", kind, (0, 100), stacked(small), labelled_only=few)
    coarse_task = Task("coarse", kind, (100, 120), stacked(large))
    tasks = [
        *([fine_task, coarse_task] if few else [coarse_task, fine_task]),
        Task("noise", kind, (120, 140), stacked(noise)),
        Task("inputs", "squared_error", (140, 160), seen[..., :20].clone()),
    ]
    summary = (
        "CIFAR-100: 1,200 fine labels; coarse classes of 6,000 photos, random ones, and a part of the inputs."
        if few
        else "CIFAR-100: 20 coarse classes of 2,500 photos; fine classes, random ones, and a part of the inputs."
    )
    return Bed(
        "cifar-few" if few else "cifar-coarse",
        "help" if few else "neutral",
        summary,
        "error",
        list(seeds),
        seen,
        tasks,
        training,
        validation=validation,
        labelled=1200 if few else 0,
        outputs=160,
        hidden=96,
        epochs=6 if few else 14,
        batch_size=64,
        labelled_batch=48,
    )
