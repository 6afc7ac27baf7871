"""Losses as means over the tokens or examples of a batch, whatever part of it a process has."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from meltr.parallel.gather import gather

IGNORED = -100


def wide(values: Tensor) -> Tensor:
    """Return values in float32, or in float64 if they are."""
    return values if values.dtype == torch.float64 else values.float()


def mean(values: Tensor, counted: Tensor) -> Tensor:
    """Return the mean over counted entries; averaged over processes it is that of the whole batch. 0 if there are none.

    Args:
        values: Any shape.
        counted: Same shape, boolean.
    """
    total = gather(counted.sum().to(values.dtype)[None])
    return torch.where(counted, values, 0).sum() * (len(total) / total.sum().clamp_min(1))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy over labels that are not -100.

    Args:
        logits: Shape (..., C).
        labels: Shape (...).
    """
    flat = labels.reshape(-1)
    values = F.cross_entropy(wide(logits.reshape(len(flat), -1)), flat, ignore_index=IGNORED, reduction="none")
    return mean(values, flat != IGNORED)


def binary(logits: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean binary cross-entropy over entries that are not -100; both arguments have the same shape."""
    counted = wanted != IGNORED
    values = wide(logits)
    targets = torch.where(counted, wanted, 0).to(values.dtype)
    return mean(F.binary_cross_entropy_with_logits(values, targets, reduction="none"), counted)


def contrast(one: Tensor, other: Tensor, temperature: float) -> Tensor:
    """Return SimCSE's loss (Gao et al. 2021, equation 4): each text has to find its second feature among all.

    Args:
        one: Features of the texts, (B, D).
        other: Their features with other dropout, (B, D); those of all processes are compared.
        temperature: Of the cosines.
    """
    every = gather(other)
    cosines = F.normalize(wide(one), dim=1) @ F.normalize(wide(every), dim=1).T
    first = len(one) * (torch.distributed.get_rank() if len(every) > len(one) else 0)
    return F.cross_entropy(cosines / temperature, torch.arange(len(one), device=one.device) + first)
