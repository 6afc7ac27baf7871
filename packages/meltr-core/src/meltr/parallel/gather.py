"""For losses that compare the examples of a batch with each other: see the examples of all processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from meltr.errors import PluginError

MOST = 16
"""Numbers that describe a tensor: dimensions, type and sizes."""


def gather(tensor: Tensor) -> Tensor:
    """Return the rows of all processes, in the order of ranks, with gradient; the identity in a single process.

    For losses with negatives from the batch: features of shape (B, D) become (world_size * B, D), and every process can
    compute the loss of the joined batch. Each of them then has the whole loss, and each gets, in the backward, the sum
    of what all processes' losses say about its own rows: world_size times the gradient of one. Averaging gradients over
    processes, as DistributedDataParallel and FSDP2 do, divides that by world_size again, so that the result is exactly
    the gradient of the joined batch. The same holds where every process computes the loss of its own rows against all,
    and the losses are averaged.

    Works under forward mode (the tangents are gathered as well), without a graph, and twice differentiated.

    Args:
        tensor: Shape (B, ...), the same in all processes.

    Raises:
        PluginError: If the shapes differ.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return tensor
    # One small exchange tells whether all agree: the largest of some numbers and of their negatives.
    kind = sum(ord(letter) << (8 * (place % 6)) for place, letter in enumerate(str(tensor.dtype)))
    sizes = [tensor.dim(), kind, *tensor.shape][:MOST]
    numbers = torch.tensor(sizes + [0] * (MOST - len(sizes)), device=tensor.device)
    extremes = torch.cat([numbers, -numbers])
    dist.all_reduce(extremes, dist.ReduceOp.MAX)
    if tensor.dim() == 0 or not torch.equal(extremes[:MOST], -extremes[MOST:]):
        raise PluginError(
            f"gather: process {dist.get_rank()} has shape {tuple(tensor.shape)} and {tensor.dtype}, "
            "others another; all processes must have equal parts of a batch, with at least one dimension."
        )
    whole: Tensor = _Gather.apply(tensor)
    return whole


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
