"""Test beds: a primary task, auxiliary tasks, and what is known about whether they help."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from meltr.helps.networks import StackedMLP
from meltr.seeding import derive

Kind = Literal["cross_entropy", "squared_error", "absolute_error"]
Truth = Literal["help", "hurt", "useless", "contradictory", "mixed", "neutral"]


@dataclass(frozen=True)
class Task:
    """One task of a bed: a slice of the network's outputs and its targets.

    Args:
        name: Of its loss.
        kind: Of its loss, a mean over examples.
        outputs: First output and the one after the last; two tasks may share outputs.
        targets: Class numbers of shape (S, N), or values of shape (S, N, outputs).
        labelled_only: True if only the bed's labelled examples have a target while training.
    """

    name: str
    kind: Kind
    outputs: tuple[int, int]
    targets: Tensor
    labelled_only: bool = False

    def loss(self, outputs: Tensor, rows: Tensor) -> Tensor:
        """Return the mean loss of every seed, shape (S,).

        Args:
            outputs: Of the network for these examples, shape (S, B, all outputs).
            rows: Numbers of the examples, shape (S, B).
        """
        seeds = torch.arange(len(rows))[:, None]
        own, wanted = outputs[..., slice(*self.outputs)], self.targets[seeds, rows]
        if self.kind == "cross_entropy":
            return F.cross_entropy(own.transpose(1, 2), wanted, reduction="none").mean(1)
        error = own - wanted
        return (error.square() if self.kind == "squared_error" else error.abs()).mean((1, 2))


@dataclass(frozen=True)
class Batch:
    """Numbers of the examples of a step, per seed.

    Args:
        rows: Of the tasks with targets for all examples, shape (S, B).
        labelled: Of the tasks with targets for labelled examples only, shape (S, L).
    """

    rows: Tensor
    labelled: Tensor


@dataclass(frozen=True)
class Bed:
    """A test bed for S seeds side by side: data, split and targets of every seed are drawn on their own.

    Examples come in the order training, validation, test.

    Args:
        name: What the user writes after ``--bed``.
        truth: What the auxiliary tasks do to the primary task, known by construction or by a grid of fixed weights.
        summary: One line.
        metric: Of the primary task; lower is better: ``error`` (share of wrong classes) or ``MAE``.
        seeds: S numbers.
        inputs: Shape (S, N, features).
        tasks: Primary first.
        training: Number of training examples.
        validation: Number of validation examples.
        labelled: How many of the first training examples have a target of the primary task.
        outputs: Of the network.
        hidden: Units of the two hidden layers.
        epochs: Passes over the training examples.
        batch_size: Examples per step; labelled examples per step: half of that, or all if there are fewer.
        lr: Of AdamW.
        weight_decay: Of AdamW.
    """

    name: str
    truth: Truth
    summary: str
    metric: str
    seeds: Sequence[int]
    inputs: Tensor = field(repr=False)
    tasks: Sequence[Task] = field(repr=False)
    training: int
    validation: int
    labelled: int
    outputs: int
    hidden: int = 64
    epochs: int = 24
    batch_size: int = 48
    lr: float = 1e-3
    weight_decay: float = 1e-2

    @property
    def losses(self) -> tuple[str, ...]:
        """The names of the losses, primary first."""
        return tuple(task.name for task in self.tasks)

    def only(self, number: int) -> Bed:
        """Return the bed of one seed alone: the same data, splits and targets.

        Args:
            number: Position of the seed.
        """
        part = slice(number, number + 1)
        tasks = [replace(task, targets=task.targets[part]) for task in self.tasks]
        return replace(self, seeds=list(self.seeds)[part], inputs=self.inputs[part], tasks=tasks)

    def network(self) -> StackedMLP:
        """Return new networks, one per seed."""
        return StackedMLP(self.seeds, [self.inputs.shape[-1], self.hidden, self.hidden, self.outputs])

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch."""
        return self.training // self.batch_size

    def batches(self, epoch: int, order: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch: every seed shuffles on its own.

        Args:
            epoch: Its number.
            order: Another number gives another order of examples, everything else equal.
        """
        drawn = [np.random.default_rng(derive(seed, f"order {order}", epoch)) for seed in self.seeds]
        shuffled = np.stack([generator.permutation(self.training) for generator in drawn])
        count = min(self.batch_size // 2, self.labelled)
        for step in range(self.steps_per_epoch):
            rows = shuffled[:, step * self.batch_size : (step + 1) * self.batch_size]
            labelled = np.stack([generator.choice(self.labelled, count, replace=False) for generator in drawn])
            yield Batch(torch.from_numpy(rows.copy()), torch.from_numpy(labelled))

    def task_losses(self, network: StackedMLP, batch: Batch) -> Tensor:
        """Return all losses of every seed on a training batch, shape (S, T+1)."""
        seeds = torch.arange(len(self.seeds))[:, None]
        both = torch.cat([batch.rows, batch.labelled], 1)
        outputs, size = network(self.inputs[seeds, both]), batch.rows.shape[1]
        parts = {False: (outputs[:, :size], batch.rows), True: (outputs[:, size:], batch.labelled)}
        return torch.stack([task.loss(*parts[task.labelled_only]) for task in self.tasks], 1)

    def held_out_loss(self, network: StackedMLP) -> Tensor:
        """Return the primary loss of every seed on its validation examples, shape (S,)."""
        rows = torch.arange(self.training, self.training + self.validation).expand(len(self.seeds), -1)
        return self.tasks[0].loss(network(self.inputs[:, self.training : self.training + self.validation]), rows)

    @torch.no_grad()
    def scores(self, network: StackedMLP, split: Literal["validation", "test"]) -> Tensor:
        """Return the metric of the primary task of every seed, shape (S,); lower is better."""
        border = self.training + self.validation
        part = slice(self.training, border) if split == "validation" else slice(border, None)
        task = self.tasks[0]
        own, wanted = network(self.inputs[:, part])[..., slice(*task.outputs)], task.targets[:, part]
        wrong: Tensor = own.argmax(-1) != wanted if task.kind == "cross_entropy" else (own - wanted).abs().mean(-1)
        return wrong.double().mean(1)
