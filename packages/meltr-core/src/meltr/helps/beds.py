"""Test beds: a primary task, auxiliary tasks, and what is known about whether they help."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from meltr.errors import UserError, did_you_mean
from meltr.helps.networks import StackedMLP
from meltr.seeding import derive

Kind = Literal["cross_entropy", "binary_cross_entropy", "squared_error", "absolute_error"]
Truth = Literal["help", "hurt", "useless", "contradictory", "mixed", "neutral"]
Metric = Literal["error", "MAE", "MSE"]


class View(Protocol):
    """Changes the inputs of a step for a task that makes its own targets, such as a rotation."""

    def draw(self, generator: np.random.Generator, examples: int) -> NDArray[Any]:
        """Draw the random numbers of one seed for the examples of a step, shape (B, ...)."""
        ...

    def __call__(self, inputs: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Return the changed inputs, shape (S, B, features), and their targets, shape (S, B) or (S, B, outputs)."""
        ...


@dataclass(frozen=True)
class Task:
    """One task of a bed: a slice of the network's outputs and its targets.

    Args:
        name: Of its loss.
        kind: Of its loss, a mean over examples.
        outputs: First output and the one after the last; two tasks may share outputs.
        targets: Class numbers of shape (S, N), or values of shape (S, N, outputs); None if `view` makes them.
        labelled_only: True if only the bed's labelled examples have a target while training.
        view: Changes the inputs and makes the targets; None: the inputs as they are.
        scale: The loss is multiplied by it.
    """

    name: str
    kind: Kind
    outputs: tuple[int, int]
    targets: Tensor | None = field(repr=False, default=None)
    labelled_only: bool = False
    view: View | None = None
    scale: float = 1.0

    def loss(self, outputs: Tensor, rows: Tensor) -> Tensor:
        """Return the mean loss of every seed, shape (S,).

        Args:
            outputs: Of the network for these examples, shape (S, B, all outputs).
            rows: Numbers of the examples, shape (S, B).
        """
        return self.loss_of(outputs, self.targets_of(rows))

    def loss_of(self, outputs: Tensor, wanted: Tensor) -> Tensor:
        """Return the mean loss of every seed, shape (S,), for targets of shape (S, B) or (S, B, outputs)."""
        own = outputs[..., slice(*self.outputs)]
        if self.kind == "cross_entropy":
            return self.scale * F.cross_entropy(own.transpose(1, 2), wanted, reduction="none").mean(1)
        if self.kind == "binary_cross_entropy":
            return self.scale * F.binary_cross_entropy_with_logits(own, wanted, reduction="none").mean((1, 2))
        error = own - wanted
        return self.scale * (error.square() if self.kind == "squared_error" else error.abs()).mean((1, 2))

    def targets_of(self, rows: Tensor) -> Tensor:
        """Return the targets of these examples, shape (S, B) or (S, B, outputs)."""
        assert self.targets is not None, f"the targets of {self.name} come from its view"
        return self.targets[torch.arange(len(rows))[:, None], rows]


@dataclass(frozen=True)
class Batch:
    """Numbers of the examples of a step, per seed.

    Args:
        rows: Of the tasks with targets for all examples, shape (S, B).
        labelled: Of the tasks with targets for labelled examples only, shape (S, L).
        drawn: Random numbers of the tasks with a view, by the name of the task, shape (S, B, ...).
    """

    rows: Tensor
    labelled: Tensor
    drawn: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Bed:
    """A test bed for S seeds side by side: data, split and targets of every seed are drawn on their own.

    Examples come in the order training, validation, test.

    Args:
        name: What the user writes after ``--bed``.
        truth: What the auxiliary tasks do to the primary task, known by construction or by a grid of fixed weights.
        summary: One line.
        metric: Of the primary task; lower is better: ``error`` (share of wrong classes), ``MAE`` or ``MSE``.
        seeds: S numbers.
        inputs: Shape (S, N, features).
        tasks: Primary first.
        training: Number of training examples.
        validation: Number of validation examples.
        labelled: How many of the first training examples have a target of the primary task; 0: no task is restricted
            to labelled examples.
        outputs: Of the network.
        hidden: Units of the two hidden layers.
        epochs: Passes over the training examples.
        batch_size: Examples per step.
        labelled_batch: Labelled examples per step, or all if there are fewer; None: half of `batch_size`.
        lr: Of AdamW.
        weight_decay: Of AdamW.
    """

    name: str
    truth: Truth
    summary: str
    metric: Metric
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
    labelled_batch: int | None = None
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
        tasks = [replace(task, targets=None if task.targets is None else task.targets[part]) for task in self.tasks]
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
        generators = [np.random.default_rng(derive(seed, f"order {order}", epoch)) for seed in self.seeds]
        shuffled = np.stack([generator.permutation(self.training) for generator in generators])
        wanted = self.batch_size // 2 if self.labelled_batch is None else self.labelled_batch
        count = min(wanted, self.labelled)
        for step in range(self.steps_per_epoch):
            rows = shuffled[:, step * self.batch_size : (step + 1) * self.batch_size]
            labelled = np.zeros((len(generators), 0), np.int64)
            if count:
                labelled = np.stack([generator.choice(self.labelled, count, replace=False) for generator in generators])
            drawn = {
                task.name: torch.from_numpy(np.stack([task.view.draw(each, self.batch_size) for each in generators]))
                for task in self.tasks
                if task.view is not None
            }
            yield Batch(torch.from_numpy(rows.copy()), torch.from_numpy(labelled), drawn)

    def task_losses(self, network: StackedMLP, batch: Batch) -> Tensor:
        """Return all losses of every seed on a training batch, shape (S, T+1)."""
        seeds, size = torch.arange(len(self.seeds))[:, None], batch.rows.shape[1]
        inputs = [self.inputs[seeds, torch.cat([batch.rows, batch.labelled], 1)]]
        made = {}
        for task in self.tasks:
            if task.view is not None:
                changed, made[task.name] = task.view(inputs[0][:, :size], batch.drawn[task.name])
                inputs.append(changed)
        outputs = network(torch.cat(inputs, 1))
        everyone, labelled, *views = outputs.split([size, batch.labelled.shape[1], *[size] * len(made)], 1)
        seen = dict(zip(made, views, strict=True))
        found = []
        for task in self.tasks:
            if task.view is not None:
                found.append(task.loss_of(seen[task.name], made[task.name]))
            elif task.labelled_only:
                found.append(task.loss(labelled, batch.labelled))
            else:
                found.append(task.loss(everyone, batch.rows))
        return torch.stack(found, 1)

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
        rows = torch.arange(self.inputs.shape[1])[part].expand(len(self.seeds), -1)
        own, wanted = network(self.inputs[:, part])[..., slice(*task.outputs)], task.targets_of(rows)
        if self.metric == "error":
            wrong: Tensor = own.argmax(-1) != wanted
            return wrong.double().mean(1)
        difference = (own - wanted).double()
        distance: Tensor = difference.abs() if self.metric == "MAE" else difference.square()
        return distance.mean((1, 2))


def check_known(name: str, known: Collection[str]) -> None:
    """Raise a UserError if no bed has this name.

    Args:
        name: Name of a bed.
        known: The valid names.
    """
    if name not in known:
        raise UserError(f"unknown bed {name!r}", did_you_mean(name, list(known)))
