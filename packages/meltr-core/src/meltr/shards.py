"""This process' part of a tensor that may be sharded over several processes."""

from __future__ import annotations

from torch import Tensor


def local(tensor: Tensor) -> Tensor:
    """Return this process' part of a tensor: the shard of a DTensor, otherwise the tensor itself."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part
