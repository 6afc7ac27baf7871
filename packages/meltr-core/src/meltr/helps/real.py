"""Beds on real data of Python packages: digits of scikit-learn and MNIST-1D, each with few labels.

The helpers need no labels, or teach something else: to fill in hidden values, to tell how an input was turned, a part
of what the label says, and random classes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from meltr.helps.beds import Bed, Task
from meltr.seeding import derive

HIDDEN_SHARE = 0.3
"""Share of the values of an input that the task ``fill`` hides."""


def stacked(parts: Sequence[NDArray[Any]]) -> Tensor:
    """Return one tensor of the arrays of all seeds, shape (S, ...)."""
    return torch.from_numpy(np.stack(parts))


def shuffled(generator: Generator, classes: NDArray[Any], count: int) -> NDArray[Any]:
    """Return the classes with the first `count` in random order: nothing can be learned from them."""
    found = classes.copy()
    found[:count] = found[generator.permutation(count)]
    return found


def in_random_order(
    seeds: Sequence[int], inputs: NDArray[Any], classes: NDArray[Any], training: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the examples in an order of its own for each of S seeds.

    Args:
        seeds: One number per copy.
        inputs: Shape (N, ...).
        classes: Shape (N,).
        training: Number of examples to train on, the first ones.

    Returns:
        Inputs (S, N, ...), classes (S, N), and classes (S, N) that are shuffled where they are trained on.
    """
    orders, noise = [], []
    for seed in seeds:
        generator = np.random.default_rng(derive(seed, "bed"))
        orders.append(generator.permutation(len(inputs)))
        noise.append(shuffled(generator, classes[orders[-1]], training))
    return stacked([inputs[o] for o in orders]), stacked([classes[o] for o in orders]), stacked(noise)


@dataclass(frozen=True)
class Filled:
    """The inputs with some values set to zero; the targets are the inputs themselves.

    Args:
        features: Of an input.
    """

    features: int

    def draw(self, generator: Generator, examples: int) -> NDArray[np.float32]:
        """Draw which values are kept, shape (B, features)."""
        return np.asarray(generator.random((examples, self.features)) > HIDDEN_SHARE, np.float32)

    def __call__(self, inputs: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Return the inputs with holes and the whole inputs, both of shape (S, B, features)."""
        return inputs * drawn, inputs


class Turned:
    """Square images turned by a random number of quarter turns, which is the target."""

    def draw(self, generator: Generator, examples: int) -> NDArray[np.int64]:
        """Draw the quarter turns, shape (B,)."""
        return generator.integers(0, 4, examples)

    def __call__(self, inputs: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Return the turned images, shape (S, B, side^2), and their turns, shape (S, B)."""
        side = round(inputs.shape[-1] ** 0.5)
        images = inputs.unflatten(-1, (side, side))
        turns = torch.stack([torch.rot90(images, number, (2, 3)) for number in range(4)], 2).flatten(-2)
        chosen = drawn[..., None, None].expand(-1, -1, 1, turns.shape[-1])
        return turns.gather(2, chosen).squeeze(2), drawn


class Reversed:
    """Series that run backwards in half of all cases; the target is whether they do."""

    def draw(self, generator: Generator, examples: int) -> NDArray[np.int64]:
        """Draw which series are reversed, shape (B,)."""
        return generator.integers(0, 2, examples)

    def __call__(self, inputs: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Return the series, shape (S, B, length), and whether each is reversed, shape (S, B)."""
        return torch.where(drawn[..., None] == 1, inputs.flip(-1), inputs), drawn


@cache
def _digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    from sklearn.datasets import load_digits

    found = load_digits()
    return np.asarray(found.data / 16, np.float32), np.asarray(found.target, np.int64)


def digits(seeds: Sequence[int]) -> Bed:
    """Digits of 8x8 pixels: 60 labels; helpers on 900 images."""
    images, classes = _digits()
    training = 900
    inputs, labels, noise = in_random_order(seeds, images, classes, training)
    loops = torch.isin(labels, torch.tensor([0, 6, 8, 9])).long()
    tasks = [
        Task("class", "cross_entropy", (0, 10), labels, labelled_only=True),
        Task("fill", "squared_error", (10, 74), view=Filled(64), scale=10.0),
        Task("turn", "cross_entropy", (74, 78), view=Turned()),
        Task("parity", "cross_entropy", (78, 80), labels % 2),
        Task("loop", "cross_entropy", (80, 82), loops),
        Task("noise", "cross_entropy", (82, 92), noise),
    ]
    return Bed(
        "digits",
        "help",
        "60 labels of scikit-learn's digits; helpers on 900 images, one of them random.",
        "error",
        list(seeds),
        inputs,
        tasks,
        training,
        validation=100,
        labelled=60,
        outputs=92,
        epochs=25,
    )


@cache
def _series() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return MNIST-1D as its package makes it, without a download; global random numbers stay as they are."""
    from mnist1d.data import get_dataset_args, make_dataset

    python, numpy, own = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        made = make_dataset(get_dataset_args())
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(own)
    series = np.concatenate([made["x"], made["x_test"]]).astype(np.float32)
    return series, np.concatenate([made["y"], made["y_test"]]).astype(np.int64)


def mnist1d(seeds: Sequence[int]) -> Bed:
    """MNIST-1D (Greydanus 2020): 400 labels; helpers on 2,400 series of 40 values."""
    series, classes = _series()
    training = 2400
    inputs, labels, noise = in_random_order(seeds, series, classes, training)
    tasks = [
        Task("class", "cross_entropy", (0, 10), labels, labelled_only=True),
        Task("fill", "squared_error", (10, 50), view=Filled(40)),
        Task("reversed", "cross_entropy", (50, 52), view=Reversed()),
        Task("noise", "cross_entropy", (52, 62), noise),
    ]
    return Bed(
        "mnist1d",
        "neutral",
        "400 labels of MNIST-1D; helpers on 2,400 series, one of them random.",
        "error",
        list(seeds),
        inputs,
        tasks,
        training,
        validation=400,
        labelled=400,
        outputs=62,
        hidden=96,
        epochs=16,
        batch_size=64,
    )
