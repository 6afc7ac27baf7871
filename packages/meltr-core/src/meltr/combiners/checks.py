"""Checks of what a user gives a combiner, one value a loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from meltr.errors import UserError


def one_per_loss(option: str, values: Sequence[float], names: Sequence[str]) -> Tensor:
    """Return `values` as a vector of shape (T+1,).

    Args:
        option: The setting they come from.
        values: What was given.
        names: The losses in use, primary first.

    Raises:
        UserError: If there is not one value a loss.
    """
    if len(values) != len(names):
        message = f"{option} has {len(values)} values for {len(names)} losses"
        raise UserError(message, f"Give one value for each of: {', '.join(names)}.")
    return torch.tensor([float(value) for value in values])


def refuse_below_zero(values: Tensor, names: Sequence[str], message: str, hint: str) -> None:
    """Refuse values, shape (T+1,), that are not positive; what is not a number is left to the engine.

    Raises:
        UserError: With `message`, the losses concerned and `hint`.
    """
    found = [f"{name} = {value:g}" for name, value in zip(names, values.tolist(), strict=True) if value <= 0]
    if found:
        raise UserError(f"{message}, but {', '.join(found)}", hint)
