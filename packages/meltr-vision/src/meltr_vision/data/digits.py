"""The handwritten digits of scikit-learn."""

from __future__ import annotations

import numpy as np

from meltr.data.splits import split_indices
from meltr_vision.data.images import ImageSet, Splits


def read_digits() -> Splits:
    """Return scikit-learn's 1,797 digits, (1, 8, 8), with grey values 0..16 scaled to 0..255.

    A fifth of them is the test split. It is class-balanced and has a fixed seed, so that no setting changes it.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images[:, None] * (255 / 16)).astype(np.uint8)
    labels = bunch.target.astype(np.int64)
    cut = split_indices(len(labels), {"test": 0.2}, seed=0, labels=labels)
    names = tuple(str(digit) for digit in range(10))
    train, test = (ImageSet(images[cut[part]], labels[cut[part]], names) for part in ("train", "test"))
    return Splits(train=train, test=test)
