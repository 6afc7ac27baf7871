"""Devices by name."""

from __future__ import annotations

import torch

from meltr.errors import UserError


def resolve_device(name: str) -> torch.device:
    """Return the device for ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.

    Raises:
        UserError: If there is no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"Unknown device {name!r}.", "Valid choices: auto, cpu, cuda, cuda:0, mps.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("No CUDA device was found.", "Use --device cpu, or find the cause with: meltr doctor")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"There is no {name}.", f"CUDA devices here: {torch.cuda.device_count()}.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("No MPS device was found.", "Use --device cpu.")
    return device
