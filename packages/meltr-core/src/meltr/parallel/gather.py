"""Gather the examples of all processes, for losses that compare the examples of a batch with each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, zip_longest
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from meltr.errors import PluginError
from meltr.parallel.ranks import Ranks

T = TypeVar("T")

MOST = 16
"""Length of the description of a tensor: dimensions, type and sizes."""


def gather(tensor: Tensor) -> Tensor:
    """Return the rows of all processes, in rank order and differentiable; the identity in a single process.

    For losses with negatives from the batch: features of shape (B, D) become (world_size * B, D), and every process can
    compute the loss of the joint batch. In the backward pass each process receives the sum, over the losses of all
    processes, of the gradients of its own rows: world_size times the gradient of one loss. Averaging gradients over
    processes, as DistributedDataParallel and FSDP2 do, divides this by world_size, so that the result is exactly the
    gradient of the joint batch. The same holds if every process computes the loss of its own rows against all rows, and
    the losses are averaged.

    Supports forward mode (the tangents are gathered too), evaluation without a graph, and second derivatives.

    Args:
        tensor: Shape (B, ...), the same in all processes.

    Raises:
        PluginError: If the shapes differ.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return tensor
    # One small all-reduce checks that all agree: the maximum of the description and of its negative.
    kind = sum(ord(letter) << (8 * (place % 6)) for place, letter in enumerate(str(tensor.dtype)))
    sizes = [tensor.dim(), kind, *tensor.shape][:MOST]
    numbers = torch.tensor(sizes + [0] * (MOST - len(sizes)), device=tensor.device)
    extremes = torch.cat([numbers, -numbers])
    dist.all_reduce(extremes, dist.ReduceOp.MAX)
    if tensor.dim() == 0 or not torch.equal(extremes[:MOST], -extremes[MOST:]):
        raise PluginError(
            f"gather: process {dist.get_rank()} has shape {tuple(tensor.shape)} and {tensor.dtype}, "
            "but another process differs; all processes must have equal parts of a batch, with at least one dimension."
        )
    whole: Tensor = _Gather.apply(tensor)
    return whole


def share_of(items: Iterable[T], rank: int, world_size: int) -> Iterator[T]:
    """Yield a process' share of something that all processes go through together: every `world_size`-th item.

    Args:
        items: The items, the same in all processes.
        rank: Rank of this process; the first of its items is number `rank`.
        world_size: Number of processes.
    """
    return islice(items, rank, None, world_size)


def gather_in_turn(own: Sequence[T], world_size: int) -> list[T]:
    """Return the results of all processes in the order of the items, if each computed those of its `share_of` them.

    The results travel as they are, so nothing is rounded. All processes must call it.

    Args:
        own: Results of this process; tensors on the CPU, or plain values.
        world_size: Number of processes; 1: `own` is returned, whether or not there is a process group.
    """
    if world_size == 1:
        return list(own)
    nothing = object()
    turns = zip_longest(*Ranks.current().gather_objects(list(own)), fillvalue=nothing)
    return [each for turn in turns for each in turn if each is not nothing]


class _Gather(torch.autograd.Function):
    """All-gather along the first dimension; its transpose is the sum over processes of this process' rows."""

    @staticmethod
    def forward(tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        return

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _SumOfMine.apply(gradients[0])

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Any:
        return _Gather.apply(tangents[0])


class _SumOfMine(torch.autograd.Function):
    """The sum over processes of the rows that belong to this process: the transpose of `_Gather`."""

    @staticmethod
    def forward(tensor: Tensor) -> Tensor:
        total = tensor.contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()].clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        return

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _Gather.apply(gradients[0])

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Any:
        return _SumOfMine.apply(tangents[0])
