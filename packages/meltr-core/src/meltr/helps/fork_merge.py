"""ForkMerge (Jiang et al., NeurIPS 2023): branches with other task weights are merged again and again.

All branches start from the same weights. After a part of the training their networks are merged,

    theta = sum_k lambda_k theta_k,     lambda_k >= 0,     sum_k lambda_k = 1,

with the lambda whose merged network has the lowest primary loss on held-out examples, and every branch goes on from
there. A branch that harms gets lambda = 0, and what it did since the last merge is undone.

Lambda is searched as the paper does for several branches: they are sorted by their own held-out loss, and each in turn
is mixed into what there is with the share of a grid that lowers the loss most. What is not in the paper: the state of
the optimiser is merged with the same lambda.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from meltr.helps.beds import Bed
from meltr.helps.lanes import Candidates, Lane, lanes_of, weighted_mean

GRID = (0.25, 0.5, 0.75)
"""Shares with which a branch is mixed in, besides 0."""


@dataclass(frozen=True)
class ForkMerge:
    """Branches that are merged on held-out examples.

    Args:
        branches: Their task weights.
        merges: How often they are merged, at equal distances; the last time at the end.
    """

    branches: Candidates
    merges: int

    def steps(self, auxiliary: int) -> float:
        """Return the training steps relative to one run, with this number of auxiliary losses."""
        return float(len(self.branches(auxiliary)))

    def run(self, bed: Bed, order: int = 0) -> Lane:
        """Train every seed of a bed.

        Args:
            bed: With its seeds.
            order: Another number gives another order of examples.

        Returns:
            The last merged network of every seed. Only merged networks are scored, so one of them is the checkpoint
            that validation selects. The task weights are the mean over the training of those of the branches,
            weighted by lambda.
        """
        lanes, done, weights = lanes_of(bed, self.branches, order), 0, torch.zeros(1)
        merged = Lane(bed, lanes[0].weights, order)
        for number in range(self.merges):
            until = max(done, round(bed.epochs * (number + 1) / self.merges))
            for lane in lanes:
                lane.train(done, until)
            merged.merge(lanes, best_shares(bed, lanes))
            merged.look()
            weights, done = weights + merged.weights * (until - done) / bed.epochs, until
            for lane in lanes:
                own = lane.weights
                lane.merge([merged], torch.ones(1, len(bed.seeds)))
                lane.weights = own
        merged.weights = weights
        return merged


@torch.no_grad()
def best_shares(bed: Bed, lanes: Sequence[Lane]) -> Tensor:
    """Return lambda for every seed, shape (lanes, S).

    Args:
        bed: With its seeds.
        lanes: The branches, at the same epoch.
    """
    rows, trial, losses = torch.arange(len(bed.seeds)), bed.network(), torch.stack([lane.now for lane in lanes])
    branches = list(zip(*(lane.network.parameters() for lane in lanes), strict=True))
    ranked = losses.argsort(dim=0, stable=True)
    shares = torch.zeros(ranked.shape)
    shares[ranked[0], rows] = 1.0
    lowest = losses[ranked[0], rows]
    for following in ranked[1:]:
        before = shares
        for share in GRID:
            mixed = before * (1 - share)
            mixed[following, rows] += share
            for own, parts in zip(trial.parameters(), branches, strict=True):
                own.copy_(weighted_mean(parts, mixed))
            loss = bed.held_out_loss(trial)
            shares, lowest = torch.where(loss < lowest, mixed, shares), torch.minimum(loss, lowest)
    return shares
