"""Computation of gradients and exchange of values when one or several processes hold the batch and the weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

from meltr.autograd.losses import Compute, as_parts
from meltr.autograd.vectors import Direction, dot, products

Averaging = Literal["backward", "later"]
"""How an inner gradient is averaged over processes: ``backward``: by the backward pass, which the forward pass
prepared; ``later``: not yet, but with a later micro-batch of the same batch."""


class Sharing:
    """Single process: nothing is shared. The base class of the other modes.

    The loss of a batch that is split over processes is the mean of the processes' losses, and m is not linear. So the
    losses are averaged *before* they enter the combiner (m(mean l) is not mean m(l)), and then the gradients are.
    """

    one_process = True
    """False if losses and gradients are means over several processes."""

    whole_weights = True
    """False if this process holds a shard of the weights, which torch.autograd.grad cannot differentiate by."""

    autocast_cache = True
    """False if autocast must not cache low-precision copies of weights."""

    def evaluate(self, compute: Compute, *, inner: bool) -> tuple[Tensor, ...]:
        """Call the loss function and return its losses, 0-dim each.

        Args:
            compute: The loss function.
            inner: True if an inner backward pass will run on the graph and average the gradient.
        """
        return as_parts(compute())

    def gradient(
        self, losses: Sequence[Tensor], seeds: Sequence[Tensor], parameters: Sequence[Tensor], *, retain: bool = True
    ) -> list[Tensor | None]:
        """Return this process' gradient of sum_t seeds_t * losses_t, a vector-Jacobian product, by one backward pass.

        Args:
            losses: 0-dim tensors with their graph.
            seeds: One weight per loss.
            parameters: Parameters to differentiate by; unused ones get None.
            retain: Keep the graph for another backward pass.
        """
        return list(torch.autograd.grad(losses, parameters, seeds, retain_graph=retain, allow_unused=True))

    def backward(self, losses: Sequence[Tensor], seeds: Sequence[Tensor], averaging: Averaging) -> None:
        """Add the gradient of sum_t seeds_t * losses_t to ``.grad`` of every leaf and free the graph.

        Args:
            losses: 0-dim tensors with their graph.
            seeds: One weight per loss.
            averaging: How the gradient is averaged over processes, see `Averaging`.
        """
        torch.autograd.backward(list(losses), list(seeds))

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over the processes of a small tensor."""
        return values

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Copy the values of rank 0 to every process, in place."""

    def mean_direction(self, direction: Direction, parameters: Sequence[Tensor]) -> Direction:
        """Return the mean over the processes of their gradients by `parameters`."""
        return direction

    def mean_small(self, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return the means over the processes of a few small tensors; each is None in all processes or in none."""
        return list(tensors)

    def dot(self, one: Direction, other: Direction) -> Tensor:
        """Return the inner product of two averaged directions, float64, shape ()."""
        return dot(one, other)

    def products(self, rows: Iterable[Direction], direction: Direction) -> Tensor:
        """Return the inner products of rows with an averaged direction, averaged over processes, float64, (T+1,)."""
        return products(rows, direction)

    def gathered(self) -> AbstractContextManager[Any]:
        """Return a context in which all weights are gathered, for evaluations that call any part of the model."""
        return nullcontext()

    def moved(self) -> None:
        """Called after the weights were changed in place."""
