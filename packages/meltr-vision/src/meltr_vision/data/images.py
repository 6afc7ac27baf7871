"""Labelled images in memory, and readers of the data sets with official files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from meltr.data.download import Progress, download, extract_tar
from meltr.data.safe_pickle import load_pickle
from meltr.errors import UserError
from meltr_vision.data.layouts import LAYOUTS


@dataclass(frozen=True)
class ImageSet:
    """Labelled images.

    Args:
        images: (N, C, S, S) uint8.
        labels: (N,) int64, below ``len(names)``.
        names: Class names in the order of the labels.
        files: File of each image, if there are files.
        others: Other labels of the images, (N,) int64: coarse ones beside fine ones, or the reverse; None: none.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    names: tuple[str, ...]
    files: tuple[str, ...] = ()
    others: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Splits:
    """Splits of a data set: training, and the others if the data set has them."""

    train: ImageSet
    validation: ImageSet | None = None
    test: ImageSet | None = None


@dataclass(frozen=True)
class Cifar:
    """One of the two CIFAR data sets in its official "python version".

    Args:
        dataset: Name of the data set.
        folder: Folder inside the archive.
        train: Files of the training split.
        test: File of the test split.
        meta: File with the class names.
        label_key: Entry with the labels.
        names_key: Entry with the class names.
        classes: Number of classes.
        url: Address of the official archive.
        md5: Digest of the archive, from the official page.
        other_key: Entry with the other labels of the images; empty: there are none.
        others: Number of their classes.
    """

    dataset: str
    folder: str
    train: tuple[str, ...]
    test: str
    meta: str
    label_key: str
    names_key: str
    classes: int
    url: str
    md5: str
    other_key: str = ""
    others: int = 0

    def coarse(self) -> Cifar:
        """Return the data set with its coarse labels as classes, and the fine ones as other labels."""
        return replace(
            self,
            label_key=self.other_key,
            names_key=self.names_key.replace("fine", "coarse"),
            classes=self.others,
            other_key=self.label_key,
            others=self.classes,
        )

    @property
    def files(self) -> tuple[str, ...]:
        """All files of the folder."""
        return (*self.train, self.test, self.meta)


CIFARS = {
    "cifar100": Cifar(
        dataset="cifar100",
        folder="cifar-100-python",
        train=("train",),
        test="test",
        meta="meta",
        label_key="fine_labels",
        names_key="fine_label_names",
        classes=100,
        url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        md5="eb9058c3a382ffc7106e4002c42a8d85",
        other_key="coarse_labels",
        others=20,
    ),
    "cifar10": Cifar(
        dataset="cifar10",
        folder="cifar-10-batches-py",
        train=tuple(f"data_batch_{number}" for number in range(1, 6)),
        test="test_batch",
        meta="batches.meta",
        label_key="labels",
        names_key="label_names",
        classes=10,
        url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        md5="c58f30108f718f92721af3b95e74349a",
    ),
}


def how_to_get(dataset: str, *, fetchable: bool) -> str:
    """Return the hint for missing files: the layout, and the command that gets them."""
    layout = LAYOUTS[dataset].replace("\n", "\n    ")
    fetch = "\nOr let meltr download the official files: --data-root DIR --set download=true" if fetchable else ""
    return f"Point --data-root DIR to a folder DIR with\n    {layout}{fetch}"


def read_cifar(cifar: Cifar, root: Path | None, *, fetch: bool, progress: Progress | None = None) -> Splits:
    """Read CIFAR from the official files: 50,000 training and 10,000 test images of shape (3, 32, 32).

    Args:
        cifar: The data set.
        root: The official folder, or the folder that contains it.
        fetch: True: download the official archive if files are missing.
        progress: Callback for the progress of the download.

    Raises:
        UserError: If files are missing or broken. The error says what was found, the layout and the command.
    """
    hint = how_to_get(cifar.dataset, fetchable=True)
    if root is None:
        raise UserError(f"{cifar.dataset} needs its files, but --data-root was not given.", hint)
    folder = root if root.name == cifar.folder or (root / cifar.meta).is_file() else root / cifar.folder
    missing = [name for name in cifar.files if not (folder / name).is_file()]
    if missing and fetch:
        parent = folder.parent if folder.name == cifar.folder else folder
        archive = download(cifar.url, parent / cifar.url.rpartition("/")[2], md5=cifar.md5, progress=progress)
        extract_tar(archive, parent)
        folder = parent / cifar.folder
        missing = [name for name in cifar.files if not (folder / name).is_file()]
    if missing:
        state = f"lacks {', '.join(missing)}" if folder.is_dir() else "does not exist"
        raise UserError(f"{cifar.dataset} is not complete: {folder} {state}.", hint)
    names = _names(cifar, folder / cifar.meta)
    parts = [_read_batch(cifar, folder / name, names) for name in cifar.train]
    others = [part.others for part in parts if part.others is not None]
    train = ImageSet(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.labels for part in parts]),
        names,
        others=np.concatenate(others) if len(others) == len(parts) else None,
    )
    return Splits(train=train, test=_read_batch(cifar, folder / cifar.test, names))


def _broken(cifar: Cifar, file: Path, problem: str) -> UserError:
    return UserError(
        f"{file} is not the official file of {cifar.dataset}: {problem}.",
        f"Delete {file.parent}. {how_to_get(cifar.dataset, fetchable=True)}",
    )


def _entry(cifar: Cifar, file: Path, content: Any, key: str) -> Any:
    if not isinstance(content, dict) or key not in content:
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise _broken(cifar, file, f"it has no entry {key!r} (found {found})")
    return content[key]


def _names(cifar: Cifar, file: Path) -> tuple[str, ...]:
    names = _entry(cifar, file, load_pickle(file), cifar.names_key)
    if not isinstance(names, Sequence) or len(names) != cifar.classes:
        raise _broken(cifar, file, f"{cifar.names_key} does not hold {cifar.classes} names")
    return tuple(map(str, names))


def _read_batch(cifar: Cifar, file: Path, names: tuple[str, ...]) -> ImageSet:
    """Read one official file. A row has 3,072 bytes: red, green and blue planes of 32 rows each."""
    content = load_pickle(file)
    data, raw = _entry(cifar, file, content, "data"), _entry(cifar, file, content, cifar.label_key)
    other = content.get(cifar.other_key)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3 * 32 * 32:
        shape = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise _broken(cifar, file, f"data is {shape}, expected uint8 (N, 3072)")

    def checked(found: Any, key: str, classes: int) -> npt.NDArray[np.int64]:
        try:
            labels = np.asarray(found, dtype=np.int64)
        except (TypeError, ValueError, OverflowError):
            raise _broken(cifar, file, f"{key} does not hold whole numbers")
        if labels.shape != (len(data),) or len(data) == 0:
            raise _broken(cifar, file, f"it has {len(data)} images, but labels of shape {labels.shape}")
        if labels.min() < 0 or labels.max() >= classes:
            raise _broken(cifar, file, f"labels from {labels.min()} to {labels.max()}, expected 0 to {classes - 1}")
        return labels

    labels = checked(raw, cifar.label_key, cifar.classes)
    others = None if other is None else checked(other, cifar.other_key, cifar.others)
    return ImageSet(data.reshape(-1, 3, 32, 32), labels, names, others=others)


def read_digits() -> Splits:
    """Return scikit-learn's 1,797 digits, (1, 8, 8), with grey values 0..16 scaled to 0..255.

    A fifth of them is the test split. It is class-balanced and has a fixed seed, so that no setting changes it.
    """
    from sklearn.datasets import load_digits

    from meltr.data.splits import split_indices

    bunch = load_digits()
    images = np.rint(bunch.images[:, None] * (255 / 16)).astype(np.uint8)
    labels = bunch.target.astype(np.int64)
    cut = split_indices(len(labels), {"test": 0.2}, seed=0, labels=labels)
    names = tuple(str(digit) for digit in range(10))
    train, test = (ImageSet(images[cut[part]], labels[cut[part]], names) for part in ("train", "test"))
    return Splits(train=train, test=test)


def miniature(
    classes: int, *, others: int = 0, size: int = 32, train: int = 20, test: int = 5, seed: int = 0
) -> Splits:
    """Make a learnable synthetic sample of a data set: each class is its own coloured grating with noise.

    Args:
        classes: Number of classes.
        others: Classes of the other labels, which follow from the classes; 0: there are none.
        size: Side of the images in pixels.
        train: Training images per class.
        test: Test images per class.
        seed: Seed of the gratings and the noise.
    """
    rng = np.random.default_rng(seed)
    angle, frequency = rng.uniform(0, np.pi, classes), rng.uniform(1, 4, classes)
    colour = rng.uniform(40, 215, (classes, 3, 1, 1))
    y, x = np.mgrid[0:size, 0:size] / size
    names = tuple(f"class {number}" for number in range(classes))

    def part(each: int) -> ImageSet:
        labels = np.repeat(np.arange(classes, dtype=np.int64), each)
        phase = rng.uniform(0, 2 * np.pi, len(labels))[:, None, None]
        a, f = angle[labels][:, None, None], 2 * np.pi * frequency[labels][:, None, None]
        wave = np.sin(f * (np.cos(a) * x + np.sin(a) * y) + phase)
        values = colour[labels] + 40 * wave[:, None] + rng.normal(0, 12, (len(labels), 3, size, size))
        second = labels * others // classes if others else None
        return ImageSet(values.clip(0, 255).astype(np.uint8), labels, names, others=second)

    return Splits(train=part(train), test=part(test))
