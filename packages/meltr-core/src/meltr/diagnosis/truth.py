"""The measurement on beds with known truth, for many seeds at once: how often is a verdict right?"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from meltr.diagnosis.experiment import Budget, Measured, Names, arms
from meltr.helps.beds import Bed
from meltr.helps.made import made
from meltr.helps.networks import StackedMLP
from meltr.seeding import derive

PARTS = 10
"""Parts of a bed's validation examples."""

BUDGET = Budget(steps=480, branches=6, looks=12)
"""What a bed is given: the whole training of a bed is 480 steps."""


def measured(name: str, seeds: Sequence[int], budget: Budget = BUDGET) -> list[Measured]:
    """Return what `meltr.diagnosis.experiment.measure` shows on a bed, for every seed.

    All branches of all seeds train side by side, as one model. No two of them share a parameter, so each trains as it
    would alone.

    Args:
        name: Of the bed.
        seeds: Of the beds.
        budget: How much is trained.
    """
    bed = branches_of(made(name, seeds), budget.branches)
    found = [Measured(bed.losses, budget.marks()) for _ in seeds]
    _Side(bed, bed.losses).train([1])  # the first step loads and allocates
    for names in arms(bed.losses):
        begun = time.process_time()  # of this process, whatever else the machine does
        scores, vectors = _Side(bed, names).train(budget.marks())
        seconds = (time.process_time() - begun) / budget.steps / len(bed.seeds)
        for number, own in enumerate(found):
            part = slice(number * budget.branches, (number + 1) * budget.branches)
            own.scores[names] = scores[part].tolist()
            own.seconds[names] = [seconds] * budget.branches
            own.mebibytes[names] = None
            if vectors is not None:
                own.vectors = vectors[part].tolist()
    return found


def branches_of(bed: Bed, branches: int) -> Bed:
    """Return a bed with every seed repeated: the same data, and new weights and another order for every branch."""
    again = [derive(seed, "branch", number) for seed in bed.seeds for number in range(branches)]

    def repeated(values: Tensor) -> Tensor:
        return values.repeat_interleave(branches, 0)

    targets = [None if task.targets is None else repeated(task.targets) for task in bed.tasks]
    tasks = [dataclasses.replace(task, targets=each) for task, each in zip(bed.tasks, targets, strict=True)]
    return dataclasses.replace(bed, seeds=again, inputs=repeated(bed.inputs), tasks=tasks)


class _Side:
    """One arm of every branch of every seed."""

    def __init__(self, bed: Bed, names: Names) -> None:
        self._bed, self._network = bed, bed.network()
        self._weights = torch.tensor([float(name in names) for name in bed.losses])
        self._whole = names == bed.losses
        self._optimizer = torch.optim.AdamW(self._network.parameters(), bed.lr, weight_decay=bed.weight_decay)

    def train(self, marks: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Return the scores, (branches, marks, parts), and the inner products of the arm with all losses."""
        bed, scores, vectors, step = self._bed, list[Tensor](), list[Tensor](), 0
        batches = (batch for epoch in range(1 + marks[-1] // bed.steps_per_epoch) for batch in bed.batches(epoch))
        for point, mark in enumerate(marks):
            if self._whole:
                vectors.append(self._inner_products(point))
            while step < mark:
                self._optimizer.zero_grad()
                (bed.task_losses(self._network, next(batches)) * self._weights).sum().backward()
                self._optimizer.step()
                step += 1
            scores.append(held_out(bed, self._network))
        return torch.stack(scores, 1), torch.stack(vectors, 1) if vectors else None

    def _inner_products(self, point: int) -> Tensor:
        """Return the inner products of v and the rows of J of every branch, (branches, T+2, T+2)."""
        bed, weights = self._bed, list(self._network.parameters())
        part = bed.validation // PARTS
        first = bed.training + part * (point % PARTS)
        rows = torch.arange(first, first + part).expand(len(bed.seeds), -1)
        primary = bed.tasks[0].loss(self._network(bed.inputs[:, first : first + part]), rows).sum()
        batch = next(bed.batches(point, order=1))
        losses = [primary, *bed.task_losses(self._network, batch).sum(0)]
        rows_of = [torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True) for loss in losses]
        flat = [
            torch.cat(
                [(torch.zeros_like(w) if g is None else g).flatten(1) for g, w in zip(own, weights, strict=True)], 1
            )
            for own in rows_of
        ]
        stacked = torch.stack(flat, 1).double()
        return stacked @ stacked.transpose(1, 2)


@torch.no_grad()
def held_out(bed: Bed, network: StackedMLP) -> Tensor:
    """Return the primary loss on every part of the validation examples, (seeds, parts)."""
    inside = slice(bed.training, bed.training + bed.validation)
    task = bed.tasks[0]
    assert task.targets is not None
    logits = network(bed.inputs[:, inside])[..., slice(*task.outputs)]
    each = F.cross_entropy(logits.transpose(1, 2), task.targets[:, inside], reduction="none")
    return each.view(len(each), PARTS, -1).mean(2).double()
