"""Random numbers of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def uniform(shape: Sequence[int], device: torch.device | str, generator: torch.Generator | None) -> Tensor:
    """Return numbers uniform in [0, 1), float32, drawn where the generator is and moved to `device`.

    Args:
        shape: Of the result.
        device: Where the result lies.
        generator: Source of randomness; None: torch's global one of `device`.
    """
    drawn_on = device if generator is None else generator.device
    return torch.rand(tuple(shape), device=drawn_on, generator=generator).to(device)
