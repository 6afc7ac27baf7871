"""Several small networks side by side: one per seed, trained as one model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class StackedMLP(nn.Module):
    """S multilayer perceptrons with ReLU, one per seed. They share no parameter.

    Args:
        seeds: One seed per network: its initial weights depend on nothing else.
        sizes: Units of every layer, input and output included.
    """

    def __init__(self, seeds: Sequence[int], sizes: Sequence[int]) -> None:
        super().__init__()
        layers = [_initial(seed, sizes) for seed in seeds]
        count = len(sizes) - 1
        self.weights = nn.ParameterList([torch.stack([own[i][0] for own in layers]) for i in range(count)])
        self.biases = nn.ParameterList([torch.stack([own[i][1] for own in layers]) for i in range(count)])

    def forward(self, inputs: Tensor) -> Tensor:
        """Map inputs of shape (S, N, sizes[0]) to outputs of shape (S, N, sizes[-1])."""
        hidden = inputs
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.baddbmm(bias, hidden.relu() if number else hidden, weight)
        return hidden

    def trunk(self) -> list[nn.Parameter]:
        """Return the parameters of all layers but the last: those that the tasks share."""
        return [*list(self.weights)[:-1], *list(self.biases)[:-1]]


def _initial(seed: int, sizes: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Return weight (in, out) and bias (1, out) of every layer, uniform within 1 / sqrt(in) as in `torch.nn.Linear`."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for before, after in pairwise(sizes):
        bound = before**-0.5
        weight = (torch.rand(before, after, generator=generator) * 2 - 1) * bound
        found.append((weight, (torch.rand(1, after, generator=generator) * 2 - 1) * bound))
    return found
