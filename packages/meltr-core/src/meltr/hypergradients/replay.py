"""The same losses twice: the same random numbers, and no trace left in buffers or generators."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from meltr.torch_private import preserved_versions


class RandomState:
    """A snapshot of every random number generator that a loss may draw from.

    Python's, NumPy's (if it was imported), torch's CPU generator, the generators of the accelerators in use, and those
    handed in.

    Args:
        devices: Devices whose generators belong to the snapshot; the CPU's always does.
        generators: Further generators (masks, negatives).
    """

    def __init__(self, devices: Iterable[torch.device] = (), generators: Sequence[torch.Generator] = ()) -> None:
        self._python = random.getstate()
        numpy = sys.modules.get("numpy")
        self._numpy: Any = numpy.random.get_state() if numpy is not None else None
        self._cpu = torch.get_rng_state()
        self._devices = {d: torch.get_device_module(d).get_rng_state(d) for d in set(devices) if d.type in _SEEDABLE}
        self._generators = [(g, g.get_state()) for g in generators]

    def restore(self) -> None:
        """Put every generator back to where it was."""
        random.setstate(self._python)
        if self._numpy is not None:
            sys.modules["numpy"].random.set_state(self._numpy)
        torch.set_rng_state(self._cpu)
        for device, state in self._devices.items():
            torch.get_device_module(device).set_rng_state(state, device)
        for generator, state in self._generators:
            generator.set_state(state)


_SEEDABLE = ("cuda", "xpu")


@contextmanager
def preserved_buffers(model: nn.Module) -> Iterator[None]:
    """Leave the buffers of `model` bit-identical: extra forwards must not move BatchNorm's running statistics.

    The model stays in training mode: switching to eval would evaluate another function. Autograd's version counters are
    kept as well, so that a graph made before the extra forward can still be differentiated after it.
    """
    buffers = [buffer for buffer in model.buffers() if buffer.numel()]
    with preserved_versions(buffers):
        saved = [buffer.clone() for buffer in buffers]
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in zip(buffers, saved, strict=True):
                    buffer.copy_(value)


Losses = Tensor | Mapping[str, Tensor] | Sequence[Tensor]
"""What a loss function may return: a mapping or a sequence of scalars, or a vector, primary first."""


def as_parts(losses: Losses) -> tuple[Tensor, ...]:
    """Return the losses as 0-dim tensors, primary first.

    Raises:
        TypeError: If it is nothing of `Losses`.
        ValueError: If there is no loss, or one is not a scalar.
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
