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
    torch.manual_seed(seed)
    seed_again(seed, generator)


def seed_again(seed: int, generator: torch.Generator | None = None) -> None:
    """Seed what `seed_everything` seeds, for every step and every example: on the CPU and on the device in use.

    `torch.manual_seed` also notes the seed, with a stack trace, for each kind of device that nobody has used yet. That
    takes longer than most examples.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is not None:
        module = torch.get_device_module(accelerator)
        if not hasattr(module, "is_initialized") or module.is_initialized():
            getattr(module, "manual_seed_all", module.manual_seed)(seed)
    if generator is not None:
        generator.manual_seed(seed)
