"""Checks of combiner settings that hold one value per loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from meltr.errors import UserError

SHIFT = "Remove it (--set losses=...), add a constant to it, or use another combiner."
"""What to do about a loss that is negative."""


def one_per_loss(option: str, values: Sequence[float], names: Sequence[str]) -> Tensor:
    """Return `values` as a vector of shape (T+1,).

    Args:
        option: Name of the setting, for the message.
        values: The values given.
        names: The losses in use, primary first.

    Raises:
        UserError: If there is not exactly one value per loss.
    """
    if len(values) != len(names):
        message = f"{option} has {len(values)} values for {len(names)} losses"
        raise UserError(message, f"Give one value for each of: {', '.join(names)}.")
    return torch.tensor([float(value) for value in values])


def refuse_negative(values: Tensor, names: Sequence[str], message: str, hint: str) -> None:
    """Reject values, shape (T+1,), below 0; NaN is left to the engine.

    Raises:
        UserError: If a value is negative; it carries `message`, the losses concerned and `hint`.
    """
    found = [f"{name} = {value:g}" for name, value in zip(names, values.tolist(), strict=True) if value < 0]
    if found:
        raise UserError(f"{message}, but {', '.join(found)}", hint)


def refuse_below_zero(values: Tensor, names: Sequence[str], message: str, hint: str) -> None:
    """Reject values, shape (T+1,), that are not positive; NaN is left to the engine.

    Raises:
        UserError: If a value is not positive; it carries `message`, the losses concerned and `hint`.
    """
    found = [f"{name} = {value:g}" for name, value in zip(names, values.tolist(), strict=True) if value <= 0]
    if found:
        raise UserError(f"{message}, but {', '.join(found)}", hint)
