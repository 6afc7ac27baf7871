"""The primary objective of the outer problem (eq. 6 of the paper) and its derivative with respect to the losses."""

from __future__ import annotations

import torch
from torch import Tensor


def primary_objective(primary: Tensor, losses: Tensor, combined: Tensor, gamma: float) -> Tensor:
    """Return L_pri = l_0 + gamma |m(l) - sum(l)|, shape ().

    Args:
        primary: l_0, shape (): the first of `losses`, or the primary loss of a held-out batch.
        losses: l, shape (T+1,).
        combined: m(l), shape ().
        gamma: Weight of the regulariser.
    """
    return primary + gamma * (combined - losses.sum()).abs()


def regulariser_slope(losses: Tensor, combined: Tensor, task_weights: Tensor, gamma: float) -> Tensor | None:
    """Return d(L_pri - l_0)/dl = gamma sign(m(l) - sum(l)) (a - 1), shape (T+1,); None if gamma is 0.

    Args:
        losses: l, shape (T+1,).
        combined: m(l), shape ().
        task_weights: a = dm/dl, shape (T+1,).
        gamma: Weight of the regulariser.
    """
    return None if gamma == 0 else gamma * torch.sign(combined - losses.sum()) * (task_weights - 1)
