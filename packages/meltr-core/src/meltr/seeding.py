"""Random numbers as a function of (seed, purpose, step), so that a resumed run needs no saved generator states."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def derive(seed: int, *purpose: str | int) -> int:
    """Return a seed below 2^63 for one purpose: unrelated for different purposes, the same in every process."""
    text = ":".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def seed_everything(seed: int, generator: torch.Generator | None = None) -> None:
    """Seed Python, NumPy, torch on all devices, and `generator`."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if generator is not None:
        generator.manual_seed(seed)
