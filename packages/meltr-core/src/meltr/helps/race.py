"""Looks ahead: candidates for the task weights train side by side, and the worse ones on held-out examples are stopped.

A gradient at the current weights cannot tell a useful loss from a harmless or a harmful one
(docs/results.md, "What the outer step can see"). Training with it for a while can. A race starts one training run per
candidate, all from the same weights, with the same batches. At every round it keeps the runs whose primary loss on
held-out examples was lowest at any epoch so far, and stops the others. What is left at the end is one trained network:
nothing is trained anew. It is successive halving (Jamieson and Talwalkar 2016) over task weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from meltr.helps.beds import Bed

Candidates = Callable[[int], list[list[float]]]
"""Number of auxiliary losses -> task weights of every candidate, primary first."""


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


@dataclass(frozen=True)
class Round:
    """When candidates are compared.

    Args:
        share: Of the training that is done by then, above 0 and below 1.
        keep: How many candidates go on.
    """

    share: float
    keep: int = 1


@dataclass(frozen=True)
class Race:
    """Which candidates compete, and when they are compared.

    Args:
        candidates: The task weights.
        rounds: In the order of time. If several candidates are left at the end, validation chooses.
    """

    candidates: Candidates
    rounds: Sequence[Round]

    def steps(self, auxiliary: int) -> float:
        """Return the training steps of a race, relative to one run, with this number of auxiliary losses."""
        running, done, total = len(self.candidates(auxiliary)), 0.0, 0.0
        for each in self.rounds:
            total, done, running = total + running * (each.share - done), each.share, min(running, each.keep)
        return total + running * (1 - done)


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
        self.held_out = torch.full((count,), math.inf)
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
            with torch.no_grad():
                self.held_out = torch.minimum(self.held_out, bed.held_out_loss(self.network))
            validation, self.last = (bed.scores(self.network, split) for split in ("validation", "test"))
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

        networks = [list(lane.network.parameters()) for lane in lanes]
        for place, own in enumerate(self.network.parameters()):
            every = [parameters[place] for parameters in networks]
            own.copy_(chosen(every))
            states = [lane.optimizer.state[each] for lane, each in zip(lanes, every, strict=True)]
            self.optimizer.state[own] = {
                name: value.clone() if value.dim() == 0 else chosen([state[name] for state in states])
                for name, value in states[0].items()
            }
        for name in ("weights", "held_out", "best", "selected", "last"):
            setattr(self, name, chosen([getattr(lane, name) for lane in lanes]))


def run(bed: Bed, race: Race, order: int = 0) -> Lane:
    """Run the race of every seed.

    Args:
        bed: With its seeds.
        race: Who competes.
        order: Another number gives another order of examples.

    Returns:
        The winners: for each seed, the candidate that is left.
    """
    seeds, done = len(bed.seeds), 0
    lanes = [
        Lane(bed, torch.tensor(weights).expand(seeds, -1), order) for weights in race.candidates(len(bed.losses) - 1)
    ]
    for each in race.rounds:
        until = max(done, round(each.share * bed.epochs))
        for lane in lanes:
            lane.train(done, until)
        lanes, done = _kept(bed, lanes, torch.stack([lane.held_out for lane in lanes]), each.keep), until
    for lane in lanes:
        lane.train(done, bed.epochs)
    (winner,) = _kept(bed, lanes, torch.stack([lane.best for lane in lanes]), 1)
    return winner


def _kept(bed: Bed, lanes: Sequence[Lane], scores: Tensor, count: int) -> list[Lane]:
    """Return the lanes with the `count` lowest scores of every seed; scores of shape (lanes, S)."""
    ranked = scores.argsort(dim=0, stable=True)
    found = []
    for choice in ranked[: min(count, len(lanes))]:
        found.append(Lane(bed, lanes[0].weights, lanes[0].order))
        found[-1].take(lanes, choice)
    return found
