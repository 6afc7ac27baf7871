"""Helpers for losses of videos and texts: precision, a cross-entropy over known targets, the wanted ones by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from meltr.metrics.classification import IGNORED


def wide(tensor: Tensor) -> Tensor:
    """Return a tensor in float32 if it is in half precision, otherwise unchanged."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def cross_entropy(logits: Tensor, targets: Tensor, *, ignored: int = IGNORED) -> Tensor:
    """Return the mean cross-entropy over targets that are not `ignored`, in float32 at least; 0 if there are none.

    Args:
        logits: Shape (..., C).
        targets: Shape (...), int64.
        ignored: Value of targets that are skipped.
    """
    total = F.cross_entropy(wide(logits).flatten(0, -2), targets.flatten(), ignore_index=ignored, reduction="sum")
    return total / (targets != ignored).sum().clamp_min(1)


def wanted_losses(makers: Mapping[str, Callable[[], Tensor]], wanted: Sequence[str]) -> dict[str, Tensor]:
    """Return the wanted losses by name, in the order of `wanted`; the others are not computed.

    Args:
        makers: Name of a loss -> a function that computes it, 0-dim.
        wanted: Names from `makers`.

    Raises:
        ValueError: If a name is unknown.
    """
    unknown = [name for name in wanted if name not in makers]
    if unknown:
        raise ValueError(f"unknown losses {unknown}: choose from {tuple(makers)}")
    return {name: makers[name]() for name in wanted}
