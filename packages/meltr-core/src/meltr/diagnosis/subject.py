"""What can be diagnosed: something that trains from a known start with the losses that it is told to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from meltr.autograd.vectors import Direction, dense


class Arm(Protocol):
    """A branch that trains with some of the losses."""

    def steps(self, number: int) -> None:
        """Take training steps on the sum of the primary loss and the weighted others."""

    def held_out(self) -> list[float]:
        """Return the primary loss on every part of the held-out examples; training is not touched."""

    def gradients(self, point: int) -> tuple[Direction, Sequence[Direction]]:
        """Return v, of the primary loss on held-out examples, and J, one row per loss on training examples.

        Args:
            point: Another number gives other examples.
        """


class Subject(Protocol):
    """A model with its losses and examples.

    Args:
        losses: Names, primary first.
        device: Of the model.
    """

    losses: tuple[str, ...]
    device: torch.device

    def begin(self, branch: int, wanted: Sequence[str]) -> Arm:
        """Return to the start of a branch, to train with these losses.

        Arms of the same branch start at the same weights, see the same batches and draw the same random numbers.
        """


def rows_of(losses: Mapping[str, Tensor], parameters: Sequence[Tensor]) -> list[Direction]:
    """Return the gradient of every loss with respect to the parameters, by one backward pass each."""
    found: list[Direction] = []
    for number, loss in enumerate(losses.values()):
        keep = number < len(losses) - 1
        own = torch.autograd.grad(loss, list(parameters), retain_graph=keep, allow_unused=True)
        found.append([dense(part) for part in own])
    return found
