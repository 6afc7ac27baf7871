"""Random numbers for a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def uniform(shape: Sequence[int], device: torch.device | str, generator: torch.Generator | None) -> Tensor:
    """Return uniform numbers in [0, 1), float32, drawn on the generator's device and moved to `device`.

    Args:
        shape: Shape of the result.
        device: Device of the result.
        generator: Source of randomness; None: torch's global generator of `device`.
    """
    drawn_on = device if generator is None else generator.device
    return torch.rand(tuple(shape), device=drawn_on, generator=generator).to(device)
