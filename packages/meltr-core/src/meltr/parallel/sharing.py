"""How gradients are taken and numbers are shared when one or several processes hold the batch and the weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

from meltr.autograd.losses import Compute, as_parts
from meltr.autograd.vectors import Direction, dot, products

Averaging = Literal["backward", "later"]
"""Who averages an inner gradient over processes: the backward itself (its forward prepared that), or nobody yet (that
of a later micro-batch of the same batch will)."""


class Sharing:
    """One process holds everything: nothing is shared. The base of the other ways.

    The losses of a batch that is spread over processes are the means of the processes' losses, and m is not linear: so
    the losses are averaged *before* the combiner sees them (m(mean l) is not mean m(l)), and then gradients are.
    """

    one_process = True
    """False if losses and gradients are means over several processes."""

    whole_weights = True
    """False if this process holds a shard of the weights: then torch.autograd.grad cannot reach them."""

    autocast_cache = True
    """False if autocast must not keep low-precision copies of weights between uses."""

    def evaluate(self, compute: Compute, *, inner: bool) -> tuple[Tensor, ...]:
        """Call the loss function and return its losses, 0-dim each.

        Args:
            compute: The loss function.
            inner: True if an inner backward will run on the graph and average the gradient.
        """
        return as_parts(compute())

    def gradient(
        self, losses: Sequence[Tensor], seeds: Sequence[Tensor], parameters: Sequence[Tensor], *, retain: bool = True
    ) -> list[Tensor | None]:
        """Return the gradient of sum_t seeds_t * losses_t by one backward, this process' share.

        Args:
            losses: 0-dim tensors with their graph.
            seeds: One weight per loss.
            parameters: What to differentiate by; unused ones get None.
            retain: Keep the graph for another backward.
        """
        return list(torch.autograd.grad(losses, parameters, seeds, retain_graph=retain, allow_unused=True))

    def backward(self, losses: Sequence[Tensor], seeds: Sequence[Tensor], averaging: Averaging) -> None:
        """Add the gradient of sum_t seeds_t * losses_t to ``.grad`` of every leaf; frees the graph.

        Args:
            losses: 0-dim tensors with their graph.
            seeds: One weight per loss.
            averaging: Who averages over processes.
        """
        torch.autograd.backward(list(losses), list(seeds))

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over the processes of a small tensor."""
        return values

    def mean_direction(self, direction: Direction, parameters: Sequence[Tensor]) -> Direction:
        """Return the mean over the processes of their shares of a gradient by `parameters`."""
        return direction

    def mean_small(self, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return the means over the processes of a few small tensors, which are None everywhere or nowhere."""
        return list(tensors)

    def dot(self, one: Direction, other: Direction) -> Tensor:
        """Return the inner product of two averaged directions, float64, shape ()."""
        return dot(one, other)

    def products(self, rows: Iterable[Direction], direction: Direction) -> Tensor:
        """Return the inner products of shares of gradients with an averaged direction, averaged, float64, (T+1,)."""
        return products(rows, direction)

    def gathered(self) -> AbstractContextManager[Any]:
        """Return a context in which all weights are whole, for evaluations that call any part of the model."""
        return nullcontext()

    def moved(self) -> None:
        """Called after weights were changed in place."""
