"""Synthetic samples in the shape of CIFAR and of image folders."""

from __future__ import annotations

import numpy as np

from meltr_vision.data.images import ImageSet, Splits


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
