"""What a process holds of a tensor that may be sharded over several."""

from __future__ import annotations

from torch import Tensor


def local(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor: the shard of a DTensor, otherwise the tensor."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part
