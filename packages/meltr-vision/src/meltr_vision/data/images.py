"""Labelled images in memory, and the splits of a data set that has been read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


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
