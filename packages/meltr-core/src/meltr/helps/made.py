"""Beds that are made: what helps and what hurts is known by construction. No data set is needed.

Inputs are Gaussian, and a random hidden layer makes two independent sets of concepts of them. The primary class
depends on the first set. An auxiliary task that asks for the first set shows the network what the primary task needs;
one that asks for the second set takes its units away; random targets teach nothing; and a task that shares the
primary outputs but has other classes pulls them away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray

from meltr.helps.beds import Bed, Kind, Task, Truth, check_known
from meltr.seeding import derive

FEATURES, CONCEPTS, CLASSES, TEST = 24, 6, 6, 2000

Array = NDArray[np.float32]


class _World:
    """The data of one seed.

    Args:
        seed: Of everything in it.
        size: Number of examples.
    """

    def __init__(self, seed: int, size: int) -> None:
        self.draw: Generator = np.random.default_rng(derive(seed, "bed"))
        self.inputs = self.draw.standard_normal((size, FEATURES)).astype(np.float32)
        self.needed, self.other = self._concepts(), self._concepts()
        logits = self.needed @ self.draw.standard_normal((CONCEPTS, CLASSES))
        self.classes: NDArray[np.int64] = logits.argmax(1)

    def _concepts(self) -> Array:
        mixing = self.draw.standard_normal((FEATURES, CONCEPTS)) * 1.5 / FEATURES**0.5
        return np.asarray(np.tanh(self.inputs @ mixing), np.float32)

    def views(self, concepts: Array, count: int = 8) -> Array:
        """Return noisy linear views of concepts, shape (N, count), of unit variance."""
        seen = concepts @ self.draw.standard_normal((CONCEPTS, count))
        seen = seen + 0.3 * self.draw.standard_normal(seen.shape)
        return np.asarray((seen - seen.mean(0)) / seen.std(0), np.float32)

    def other_classes(self) -> NDArray[np.int64]:
        """Return another class than the right one for every example, always the same for a class."""
        return np.asarray((self.classes + 1) % CLASSES, np.int64)

    def random_classes(self) -> NDArray[np.int64]:
        """Return classes that have nothing to do with the inputs."""
        return self.draw.permutation(self.classes)


Targets = Callable[[_World], NDArray[np.generic]]

_SHOWN: tuple[str, Kind, Targets] = ("shown", "squared_error", lambda world: world.views(world.needed))
_FOREIGN: tuple[str, Kind, Targets] = ("foreign", "squared_error", lambda world: 2 * world.views(world.other, 24))
_ECHO: tuple[str, Kind, Targets] = ("echo", "squared_error", lambda world: world.inputs[:, :4])
_RANDOM: tuple[str, Kind, Targets] = ("random", "cross_entropy", lambda world: world.random_classes())
_CONTRARY: tuple[str, Kind, Targets] = ("contrary", "cross_entropy", lambda world: world.other_classes())

_Spec = tuple[Truth, str, Sequence[tuple[str, Kind, Targets]], int, int]

MADE: dict[str, _Spec] = {
    "shown": ("help", "60 labels; the helper shows the concepts behind them on all 960 inputs.", [_SHOWN], 60, 64),
    "foreign": ("hurt", "960 labels; the helper needs the units of a small network.", [_FOREIGN], 960, 12),
    "random": ("useless", "240 labels; the helper has random classes.", [_RANDOM], 240, 32),
    "contrary": (
        "contradictory",
        "240 labels; the helper wants other classes of the same outputs.",
        [_CONTRARY],
        240,
        32,
    ),
    "mixed": ("mixed", "60 labels; one helper shows, one is foreign, one random.", [_SHOWN, _FOREIGN, _RANDOM], 60, 64),
    "plenty": ("help", "960 labels and a wide network; the helper adds little.", [_SHOWN], 960, 128),
    "echo": ("neutral", "960 labels and a wide network; the helper repeats four inputs.", [_ECHO], 960, 128),
}
"""Truth, summary, auxiliary tasks, labelled examples and hidden units of every bed."""


def made(name: str, seeds: Sequence[int]) -> Bed:
    """Make a bed.

    Args:
        name: One of `MADE`.
        seeds: One number per copy.

    Raises:
        UserError: If the name is unknown.
    """
    check_known(name, MADE)
    truth, summary, helpers, labelled, hidden = MADE[name]
    training, validation = 960, 240
    worlds = [_World(seed, training + validation + TEST) for seed in seeds]
    tasks = [Task("class", "cross_entropy", (0, CLASSES), _stack([w.classes for w in worlds]), labelled_only=True)]
    outputs = CLASSES
    for task, kind, targets in helpers:
        drawn = _stack([targets(world) for world in worlds])
        size = CLASSES if kind == "cross_entropy" else drawn.shape[-1]
        first = 0 if task == "contrary" else outputs
        tasks.append(Task(task, kind, (first, first + size), drawn))
        outputs = max(outputs, first + size)
    return Bed(
        name,
        truth,
        summary,
        "error",
        list(seeds),
        _stack([world.inputs for world in worlds]),
        tasks,
        training,
        validation,
        labelled,
        outputs,
        hidden=hidden,
    )


def _stack(parts: Sequence[NDArray[np.generic]]) -> torch.Tensor:
    return torch.from_numpy(np.stack(parts))
