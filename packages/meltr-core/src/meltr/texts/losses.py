"""Losses of texts as means over the tokens or examples that count, whatever part of a batch a process has."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from meltr.parallel.gather import gather
from meltr.texts.columns import Column

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


def column_loss(column: Column, outputs: Tensor, values: Tensor) -> Tensor:
    """Return the loss of a further column: a cross-entropy, or the squared error in standard deviations.

    Args:
        column: The column.
        outputs: Of its head, (B, ``column.outputs``).
        values: Its cells as numbers (`Column.value`), NaN where they are empty; (B,).
    """
    known = ~values.isnan()
    if column.kind == "classes":
        return cross_entropy(outputs, torch.where(known, values, IGNORED).long())
    return mean((wide(outputs[:, 0]) - torch.where(known, values, 0)).square(), known)
