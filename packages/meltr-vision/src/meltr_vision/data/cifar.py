"""CIFAR-10 and CIFAR-100, from their official files."""

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
from meltr_vision.data.images import ImageSet, Splits
from meltr_vision.data.layouts import how_to_get


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
