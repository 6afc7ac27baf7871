"""Trains a method on a bed with `meltr.Bilevel`, and scores the checkpoint that validation selects."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from meltr.bilevel.bilevel import Bilevel
from meltr.helps.beds import Batch, Bed
from meltr.helps.methods import Method, outer_optimizer
from meltr.helps.side_by_side import Copies, side_by_side
from meltr.hypergradients.estimators import ForwardMode
from meltr.seeding import derive


@dataclass(frozen=True)
class Trial:
    """What came out of one method on one bed.

    Args:
        test: Test score of every seed at the epoch that is best on validation; lower is better.
        last: Test score of every seed after the last epoch.
        weights: Task weights, the mean over steps and seeds, primary first.
        seconds: For all seeds.
        validation: Validation score of every seed at that epoch, which the selection has seen; empty: not recorded.
    """

    test: list[float]
    last: list[float]
    weights: list[float]
    seconds: float
    validation: list[float] = field(default_factory=list)


def train(bed: Bed, method: Method) -> Trial:
    """Train every seed of a bed.

    Args:
        bed: With its seeds.
        method: How the losses are weighed.
    """
    parts = [bed] if method.side_by_side else [bed.only(number) for number in range(len(bed.seeds))]
    begun = time.perf_counter()
    found = [_searched(part, method) if method.search else _Run(part, method).finish() for part in parts]
    test, last, validation = ([score for each in found for score in each[place].tolist()] for place in range(3))
    weights = torch.stack([each[3] for each in found]).mean(0)
    return Trial(test, last, weights.tolist(), time.perf_counter() - begun, validation)


def _searched(bed: Bed, method: Method) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what `_Run.finish` does, of what a search leaves."""
    assert method.search is not None
    winner = method.search.run(bed, method.order)
    return winner.selected, winner.last, winner.best, winner.weights.mean(0)


class _Run:
    """One training run of all seeds of a bed.

    Args:
        bed: With its seeds.
        method: How the losses are weighed.
    """

    def __init__(self, bed: Bed, method: Method) -> None:
        self._bed, self._method, self._network = bed, method, bed.network()
        copies = []
        for seed in bed.seeds:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive(seed, "combiner"))
                copies.append(method.build(bed.losses))
        self._count = len(copies)
        self._combiner = side_by_side(copies) if method.side_by_side else copies[0]
        self._optimizer = torch.optim.AdamW(self._network.parameters(), bed.lr, weight_decay=bed.weight_decay)
        self._bilevel = Bilevel(
            self._network,
            self._combiner,
            outer_optimizer(method, self._combiner),
            scheme=method.scheme,
            estimator=ForwardMode(),
            every=method.every,
            budget=method.budget,
            gamma=0.0 if isinstance(self._combiner, Copies) else method.gamma,  # see _primary
            parameters=self._network.trunk() if method.trunk else None,
            inner_optimizer=self._optimizer,
        )

    def finish(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Train; return scores of shape (S,) and the mean task weights, shape (T+1,).

        The scores: on test, selected and after the last epoch, and the best on validation.
        """
        best = torch.full((self._count,), torch.inf, dtype=torch.float64)
        selected, weights, steps = best.clone(), torch.zeros(len(self._bed.losses)), 0
        for epoch in range(self._bed.epochs):
            for batch in self._bed.batches(epoch, self._method.order):
                weights += self._step(batch)
                steps += 1
            self._combiner.end_epoch()
            validation, test = (self._bed.scores(self._network, split) for split in ("validation", "test"))
            better = validation < best
            best, selected = torch.where(better, validation, best), torch.where(better, test, selected)
        return selected, test, best, weights / steps

    def _step(self, batch: Batch) -> Tensor:
        """Take one inner step, and an outer step if it is due; return the mean task weights, shape (T+1,)."""
        bed, network = self._bed, self._network
        self._optimizer.zero_grad()
        result = self._bilevel.backward(
            lambda: list(bed.task_losses(network, batch).flatten().unbind()), primary=self._primary(batch)
        )
        self._optimizer.step()
        self._bilevel.after_step()
        return result.sensitivities.float().view(self._count, -1).mean(0)

    def _primary(self, batch: Batch) -> Callable[[], list[Tensor]] | None:
        """Return what the outer step lowers: the sum over seeds, each of which sees its own part of it alone.

        With several seeds it holds the regulariser too, as a sum of the losses with constant weights. So the gradient
        of every seed has the regulariser of its own sum.
        """
        bed, network, slopes = self._bed, self._network, self._slopes(batch)
        held_out = self._method.outer_batch == "held_out"
        if self._count == 1 and not held_out:
            return None

        def objective() -> list[Tensor]:
            losses = None if held_out and slopes is None else bed.task_losses(network, batch)
            found = bed.held_out_loss(network) if losses is None or held_out else losses[:, 0]
            if losses is not None and slopes is not None:
                found = found + (slopes * losses).sum(1)
            return [found.sum()]

        return objective

    @torch.no_grad()
    def _slopes(self, batch: Batch) -> Tensor | None:
        """Return the slopes of all regularisers, shape (S, T+1); None if there are none, or `Bilevel` has them."""
        if self._method.gamma == 0 or not isinstance(self._combiner, Copies):
            return None
        return self._combiner.slopes(self._bed.task_losses(self._network, batch), self._method.gamma)
