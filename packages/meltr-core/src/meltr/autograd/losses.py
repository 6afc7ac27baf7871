"""The types that a loss function may return."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

Losses = Tensor | Mapping[str, Tensor] | Sequence[Tensor]
"""What a loss function may return: a mapping or a sequence of scalars, or a vector; primary loss first."""


Compute = Callable[[], Losses]
"""A loss function: evaluates the losses of one batch with the current model."""


def as_parts(losses: Losses) -> tuple[Tensor, ...]:
    """Return the losses as 0-dim tensors, primary first.

    Raises:
        TypeError: If `losses` is not one of the types in `Losses`.
        ValueError: If there are no losses, or one is not a scalar.
    """
    if isinstance(losses, Tensor):
        parts = tuple(losses.reshape(1) if losses.dim() == 0 else losses)
    elif isinstance(losses, Mapping):
        parts = tuple(losses.values())
    elif isinstance(losses, Sequence):
        parts = tuple(losses)
    else:
        raise TypeError(f"losses must be a mapping, a sequence or a vector of tensors, got {type(losses).__name__}")
    if not parts:
        raise ValueError("no losses: expected at least the primary one")
    for index, part in enumerate(parts):
        if not isinstance(part, Tensor) or part.numel() != 1:
            shape = tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__
            raise ValueError(f"loss number {index} must be a scalar tensor, got {shape}")
    return tuple(part.reshape(()) for part in parts)
