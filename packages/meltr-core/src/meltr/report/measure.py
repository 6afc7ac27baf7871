"""Measures a checkpoint of a run on its training data: the gradient of every task, and the losses of single examples.

Nothing is trained and nothing is written into the run. The data set is needed, as for ``meltr evaluate``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from meltr.combiners.base import GradientCombiner, sensitivities
from meltr.engine.batches import to_device
from meltr.engine.built_run import BuiltRun, build_run
from meltr.engine.checkpoints import Checkpoints, load_backbone, load_module
from meltr.engine.recovery import check
from meltr.errors import UserError
from meltr.folders.checkpoint_folder import CheckpointFolder
from meltr.folders.run_folder import RunFolder
from meltr.optim.building import autocast_dtype
from meltr.plugins import Registry
from meltr.seeding import derive, seed_everything

Floats = NDArray[np.float64]

BATCHES = 8
"""Batches on which gradients are measured."""

EXAMPLES = 64
"""Examples whose losses are measured one by one."""


@dataclass(frozen=True)
class Place:
    """Where and on what to measure.

    Args:
        run: Folder of one run.
        registry: The plugins found.
        checkpoint: ``last``, ``best``, or a name such as ``step-000500``.
        device: Device; None: the run's.
        data_root: Folder of the data set; None: the run's.
    """

    run: Path
    registry: Registry
    checkpoint: str = "last"
    device: str | None = None
    data_root: Path | None = None


@dataclass(frozen=True)
class Gradients:
    """The task gradients of a checkpoint on n batches.

    Args:
        name: Name of the run.
        checkpoint: Name of the checkpoint.
        names: Names of the losses, primary first.
        batch_size: Examples per batch.
        same: Cosine of the gradients of tasks i and j on the same batch, (n, T+1, T+1).
        other: Cosine of the gradient of task i on a batch and of task j on the batch before, (n-1, T+1, T+1): what two
            tasks share because they saw the same examples does not count. The diagonal says how well a task agrees
            with itself.
        weights: Task weights a, (n, T+1).
        shares: Part of the inner gradient u = sum_t a_t grad l_t that task t makes, (n, T+1):
            a_t <grad l_t, u> / |u|^2. The parts of a batch sum to 1; one below 0 works against u.
    """

    name: str
    checkpoint: str
    names: tuple[str, ...]
    batch_size: int
    same: Floats
    other: Floats
    weights: Floats
    shares: Floats


@dataclass(frozen=True)
class ExampleLosses:
    """Losses of single examples.

    Args:
        name: Name of the run.
        checkpoint: Name of the checkpoint.
        losses: Name of each loss -> its value for every example, (N,).
        together: Name of each loss -> examples that were evaluated together: 1, or more if the loss needs others.
    """

    name: str
    checkpoint: str
    losses: dict[str, Floats]
    together: dict[str, int]


def measure_gradients(place: Place, batches: int = BATCHES) -> Gradients:
    """Measure the gradient of every task on the first batches of the training data, as a training step sees it.

    Args:
        place: Where to measure.
        batches: Number of batches, at least 2.

    Raises:
        UserError: If the run, its checkpoint or its data is missing, or it has only one loss.
    """
    built, name = _open(place, None)
    if len(built.context.losses) < 2:
        raise UserError(
            f"{place.run} trains on one loss, {built.context.losses[0]!r}: there are no gradients to compare.",
            "Name a run with auxiliary losses, for example one with --combiner sum.",
        )
    built.model.train()
    parameters = [each for each in built.model.parameters() if each.requires_grad]
    previous: list[Tensor] | None = None
    same, other, weights, shares = [], [], [], []
    for index, batch in enumerate(_batches(built, batches)):
        losses, rows = _rows(built, batch, parameters, index)
        task_weights = _weights(built, losses, rows)
        flat = [torch.cat([part.detach().double().flatten() for part in row]) for row in rows]
        same.append(_cosines(flat, flat))
        if previous is not None:
            other.append(_cosines(flat, previous))
        weights.append(task_weights.numpy())
        shares.append(_shares(flat, task_weights))
        previous = flat
    if len(same) < 2:
        raise UserError(
            f"{place.run} has only {len(same)} batch of training data.", "Two are needed; use a run with more data."
        )
    size = built.context.spec.train.batch_size
    names = tuple(built.context.losses)
    return Gradients(place.run.resolve().name, name, names, size, *map(np.stack, (same, other, weights, shares)))


def measure_examples(place: Place, examples: int = EXAMPLES) -> ExampleLosses:
    """Measure the losses of single training examples, in evaluation mode and without a graph.

    A loss that needs other examples (a contrast, a matching) does not vary or fails for one example alone. It is
    measured on pairs, or else on batches of the run.

    Raises:
        UserError: If the run, its checkpoint or its data is missing, or no loss can be evaluated.
    """
    found: dict[str, Floats] = {}
    together: dict[str, int] = {}
    sizes = sorted({1, 2, RunFolder(place.run).read_spec().train.batch_size})
    failure: Exception | None = None
    names: Sequence[str] = ()
    for size in sizes:
        built, name = _open(place, size)
        names = built.context.losses
        try:
            values = _values(built, max(4, examples // size))
        except Exception as error:  # a loss that needs more examples may fail in any way
            failure = error
            continue
        for loss, row in zip(names, values.T, strict=True):
            if loss not in found and np.isfinite(row).all() and (np.ptp(row) > 0 or size == sizes[-1]):
                found[loss], together[loss] = row, size
        if len(found) == len(names):
            break
    if failure is not None and not found:
        raise failure
    if not found:
        raise UserError(f"No loss of {place.run} is finite.", "See its log.txt.")
    ordered = {loss: found[loss] for loss in names if loss in found}
    return ExampleLosses(place.run.resolve().name, name, ordered, together)


def _open(place: Place, batch_size: int | None) -> tuple[BuiltRun, str]:
    """Build the run with the weights of its checkpoint."""
    folder = RunFolder(place.run)
    stored = folder.read_spec()
    train = {"accumulate": 1, **({} if batch_size is None else {"batch_size": batch_size})}
    changes: dict[str, Any] = {
        "device": place.device or stored.device,
        "train": stored.train.model_copy(update=train),
    }
    if place.data_root is not None:
        changes["data_root"] = place.data_root
    checkpoints = Checkpoints(folder.checkpoints)
    path = checkpoints.chosen(place.checkpoint)
    check(checkpoints, path, place.checkpoint)
    built = build_run(stored.model_copy(update=changes), place.registry, run_dir=folder.path, trained=True)
    load_backbone(path, built.model)
    load_module(CheckpointFolder(path).combiner, built.combiner, "combiner")
    return built, path.name


def _batches(built: BuiltRun, number: int) -> Iterator[Any]:
    """Yield the first batches of the first epoch, or as many as there are."""
    for batch in itertools.islice(built.data.train.batches(0), number):
        yield to_device(batch, built.context.device)


def _losses(built: BuiltRun, batch: Any, index: int) -> Tensor:
    """Return the losses of a batch, (T+1,), with random numbers that depend on its index only."""
    context = built.context
    seed_everything(derive(context.spec.seed, "measure", index), context.generator)
    dtype = autocast_dtype(context.spec.train.precision)
    with torch.autocast(context.device.type, dtype, enabled=dtype is not None):
        losses = built.hooks.losses(built.model, batch, context)
    return torch.stack([loss.float() for loss in losses.values()])


def _rows(
    built: BuiltRun, batch: Any, parameters: Sequence[Tensor], index: int
) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
    """Return the losses, (T+1,), and the gradient of every task: one tensor per parameter."""
    losses = _losses(built, batch, index)
    rows = [
        torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
        for loss in losses
    ]
    return losses.detach(), rows


def _weights(built: BuiltRun, losses: Tensor, rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """Return the task weights a at these losses, (T+1,), float64 on the CPU."""
    combiner = built.combiner.eval()
    if isinstance(combiner, GradientCombiner):
        found = combiner.from_gradients(losses, rows)[1]
    else:
        found = sensitivities(combiner, losses)[1]
    return found.detach().double().cpu()


def _cosines(rows: Sequence[Tensor], columns: Sequence[Tensor]) -> Floats:
    """Return the cosine of each row with each column; NaN where a gradient is zero."""
    products = torch.stack([torch.stack([row @ column for column in columns]) for row in rows])
    norms = torch.stack([row.norm() for row in rows])[:, None] * torch.stack([column.norm() for column in columns])
    return (products / norms).cpu().numpy()


def _shares(rows: Sequence[Tensor], weights: Tensor) -> Floats:
    """Return a_t <grad l_t, u> / |u|^2 with u = sum_t a_t grad l_t, (T+1,); NaN if u is zero."""
    gram = torch.stack([torch.stack([row @ column for column in rows]) for row in rows]).cpu()
    pulls = weights * (gram @ weights)
    shares: Floats = (pulls / pulls.sum()).numpy()
    return shares


@torch.no_grad()
def _values(built: BuiltRun, number: int) -> Floats:
    """Return the losses of some batches, (number, T+1)."""
    built.model.eval()
    rows = [_losses(built, batch, index).double().cpu().numpy() for index, batch in enumerate(_batches(built, number))]
    if not rows:
        raise UserError("There are no training batches of this size.", "Use a run with more data.")
    return np.stack(rows)
