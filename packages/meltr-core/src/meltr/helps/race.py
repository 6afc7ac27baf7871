"""Looks ahead: candidates for the task weights train side by side, and the worse ones on held-out examples are stopped.

A gradient at the current weights cannot tell a useful loss from a harmless or a harmful one
(docs/results.md, "What the outer step can see"). Training with it for a while can. A race starts one training run per
candidate, all from the same weights, with the same batches. At every round it keeps the runs whose primary loss on
held-out examples was lowest at any epoch so far, and stops the others. What is left at the end is one trained network:
nothing is trained anew. It is successive halving (Jamieson and Talwalkar 2016) over task weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from meltr.helps.beds import Bed
from meltr.helps.lanes import Candidates, Lane, lanes_of


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

    def run(self, bed: Bed, order: int = 0) -> Lane:
        """Run the race of every seed.

        Args:
            bed: With its seeds.
            order: Another number gives another order of examples.

        Returns:
            The winners: for each seed, the candidate that is left.
        """
        lanes, done = lanes_of(bed, self.candidates, order), 0
        for each in self.rounds:
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
