"""SimCSE's loss over the texts of all processes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from meltr.parallel.gather import gather
from meltr.texts.losses import wide


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
