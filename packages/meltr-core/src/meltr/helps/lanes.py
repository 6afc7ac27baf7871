"""Training runs with fixed task weights that can be stopped, continued in one another, and merged."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from meltr.helps.beds import Bed

Candidates = Callable[[int], list[list[float]]]
"""Number of auxiliary losses -> task weights of every candidate, primary first."""


class Search(Protocol):
    """A way to find task weights by training with several."""

    def steps(self, auxiliary: int) -> float:
        """Return the training steps relative to one run, with this number of auxiliary losses."""
        ...

    def run(self, bed: Bed, order: int = 0) -> Lane:
        """Train every seed of a bed; return what is left.

        Args:
            bed: With its seeds.
            order: Another number gives another order of examples.
        """
        ...


def primary_or_sum(auxiliary: int) -> list[list[float]]:
    """Return the weights of the primary loss alone, and of the plain sum."""
    return common((0.0, 1.0))(auxiliary)


def common(values: Sequence[float]) -> Candidates:
    """Return candidates whose auxiliary losses all have the same weight, one of `values`."""
    return lambda auxiliary: [[1.0] + [value] * auxiliary for value in values]


def one_helper(values: Sequence[float]) -> Candidates:
    """Return candidates: the primary loss with one other, without those that `primary_or_sum` holds.

    Args:
        values: Weights of that other loss.
    """

    def found(auxiliary: int) -> list[list[float]]:
        pairs = [
            [1.0] + [value * (own == other) for other in range(auxiliary)]
            for value in values
            for own in range(auxiliary)
        ]
        others = [weights for weights in pairs if weights not in primary_or_sum(auxiliary)]
        return [list(weights) for weights in dict.fromkeys(map(tuple, others))]

    return found


def each_alone(values: Sequence[float]) -> Candidates:
    """Return candidates: the primary loss alone, the plain sum, and the primary loss with one other of these weights.

    Args:
        values: Weights of that other loss.
    """
    return lambda auxiliary: primary_or_sum(auxiliary) + one_helper(values)(auxiliary)


class Lane:
    """One candidate of every seed, trained side by side.

    Args:
        bed: With its seeds.
        weights: Task weights, shape (S, T+1), primary first.
        order: Another number gives another order of examples.
    """

    def __init__(self, bed: Bed, weights: Tensor, order: int = 0) -> None:
        self._bed, self.weights, self.order = bed, weights, order
        self.network = bed.network()
        self.optimizer = torch.optim.AdamW(self.network.parameters(), bed.lr, weight_decay=bed.weight_decay)
        count = len(bed.seeds)
        self.now = self.held_out = torch.full((count,), math.inf)
        self.best, self.selected = (torch.full((count,), math.inf, dtype=torch.float64) for _ in range(2))
        self.last = self.selected

    def train(self, first: int, after: int) -> None:
        """Train the epochs from `first` up to, but without, `after`; scores are taken after each."""
        bed = self._bed
        for epoch in range(first, after):
            for batch in bed.batches(epoch, self.order):
                self.optimizer.zero_grad()
                (bed.task_losses(self.network, batch) * self.weights).sum().backward()
                self.optimizer.step()
            self.look()

    @torch.no_grad()
    def look(self) -> None:
        """Score the network, and keep the scores of the epoch that is best on validation."""
        self.now = self._bed.held_out_loss(self.network)
        self.held_out = torch.minimum(self.held_out, self.now)
        validation, self.last = (self._bed.scores(self.network, split) for split in ("validation", "test"))
        better = validation < self.best
        self.best = torch.where(better, validation, self.best)
        self.selected = torch.where(better, self.last, self.selected)

    @torch.no_grad()
    def take(self, lanes: Sequence[Lane], choice: Tensor) -> None:
        """Continue, for every seed, the lane of that number: weights, optimiser and scores.

        Args:
            lanes: Lanes at the same epoch.
            choice: Numbers of lanes, shape (S,).
        """
        rows = torch.arange(len(choice))

        def chosen(parts: Sequence[Tensor]) -> Tensor:
            return torch.stack(list(parts))[choice, rows]

        self._fill(lanes, chosen)
        for name in ("weights", "held_out", "best", "selected", "last"):
            setattr(self, name, chosen([getattr(lane, name) for lane in lanes]))

    @torch.no_grad()
    def merge(self, lanes: Sequence[Lane], shares: Tensor) -> None:
        """Take, for every seed, the weighted mean of the lanes: weights, optimiser state and task weights.

        Scores stay what they were: `look` scores the merged network.

        Args:
            lanes: Lanes at the same epoch.
            shares: Shape (lanes, S); the sum over lanes is 1.
        """
        self._fill(lanes, partial(weighted_mean, shares=shares))
        self.weights = weighted_mean([lane.weights for lane in lanes], shares)

    def _fill(self, lanes: Sequence[Lane], one_of: Callable[[Sequence[Tensor]], Tensor]) -> None:
        """Set weights and optimiser state to what `one_of` makes of those of the lanes."""
        networks = [list(lane.network.parameters()) for lane in lanes]
        for place, own in enumerate(self.network.parameters()):
            every = [parameters[place] for parameters in networks]
            own.copy_(one_of(every))
            states = [lane.optimizer.state[each] for lane, each in zip(lanes, every, strict=True)]
            self.optimizer.state[own] = {
                name: value.clone() if value.dim() == 0 else one_of([state[name] for state in states])
                for name, value in states[0].items()
            }


def weighted_mean(parts: Sequence[Tensor], shares: Tensor) -> Tensor:
    """Return the weighted mean of tensors of every seed, shape (S, ...); a part without a share may hold anything.

    Args:
        parts: One per lane, shape (S, ...).
        shares: Shape (lanes, S); the sum over lanes is 1.
    """
    stacked = torch.stack(list(parts))
    own = shares.view(*shares.shape, *[1] * (stacked.dim() - 2)).to(stacked)
    return torch.where(own > 0, own * stacked, 0.0).sum(0)


def lanes_of(bed: Bed, candidates: Candidates, order: int = 0) -> list[Lane]:
    """Return one lane per candidate, all with the same weights at the start.

    Args:
        bed: With its seeds.
        candidates: The task weights.
        order: Another number gives another order of examples.
    """
    seeds = len(bed.seeds)
    return [Lane(bed, torch.tensor(own).expand(seeds, -1), order) for own in candidates(len(bed.losses) - 1)]
