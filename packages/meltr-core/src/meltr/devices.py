"""Devices by name, and what comes and goes between them and the host without waiting."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

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


_constants: dict[tuple[Any, ...], Tensor] = {}


def constant(values: tuple[Any, ...], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Return numbers as a tensor on a device. It is made once and shared, so it must not be changed.

    ``torch.tensor(values, device=device)`` would let the host wait for the device at every call, and such losses cannot
    be recorded as CUDA graphs.

    Args:
        values: Numbers, or tuples of them.
        device: Where the tensor lies.
        dtype: Its type; None: as `torch.tensor` chooses.
    """
    key = values, device, dtype
    if key in _constants:
        return _constants[key]
    with torch.inference_mode(False):
        made = torch.tensor(values, device=device, dtype=dtype)
    if type(made) is Tensor:  # not one that a tracing mode made
        _constants[key] = made
    return made


class Delayed:
    """Values of a tensor, copied to the host without waiting for the device; read them when it has got that far.

    ``tensor.tolist()`` waits for everything that was launched before it, also after the tensor was computed. This waits
    for the tensor alone.

    Args:
        tensor: The tensor; it may be changed afterwards.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._event: Any = None
        self._host = tensor.detach()
        if tensor.device.type == "cuda":
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor.detach(), non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(tensor.device))
        else:
            self._host = self._host.clone()

    def values(self) -> Any:
        """Return the values as `Tensor.tolist` does; waits if the device has not computed them yet."""
        if self._event is not None:
            self._event.synchronize()
        return self._host.tolist()
