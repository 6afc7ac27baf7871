"""The random number generators that a loss may use, so that the same losses can be evaluated twice."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch


class RandomState:
    """A snapshot of every random number generator that a loss may use.

    It covers Python's generator, NumPy's (if it is imported), torch's CPU generator, those of the accelerators in use,
    and the given ones.

    Args:
        devices: Devices whose generators belong to the snapshot, in addition to the CPU.
        generators: Other generators (for masks or negatives).
    """

    def __init__(self, devices: Iterable[torch.device] = (), generators: Sequence[torch.Generator] = ()) -> None:
        self._python = random.getstate()
        numpy = sys.modules.get("numpy")
        self._numpy: Any = numpy.random.get_state() if numpy is not None else None
        self._cpu = torch.get_rng_state()
        self._devices = {d: torch.get_device_module(d).get_rng_state(d) for d in set(devices) if d.type in _SEEDABLE}
        self._generators = [(g, g.get_state()) for g in generators]

    def is_host_of(self, other: RandomState) -> bool:
        """Tell whether Python's, NumPy's and torch's CPU generator are in the same state in another snapshot."""
        numpy = _comparable(self._numpy) == _comparable(other._numpy)
        return numpy and self._python == other._python and torch.equal(self._cpu, other._cpu)

    def restore(self) -> None:
        """Restore the state of every generator."""
        random.setstate(self._python)
        if self._numpy is not None:
            sys.modules["numpy"].random.set_state(self._numpy)
        torch.set_rng_state(self._cpu)
        for device, state in self._devices.items():
            torch.get_device_module(device).set_rng_state(state, device)
        for generator, state in self._generators:
            generator.set_state(state)


_SEEDABLE = ("cuda", "xpu")


def _comparable(state: Any) -> tuple[Any, ...]:
    """Return a state of NumPy's generator with its array as bytes; empty if there is none."""
    return () if state is None else tuple(each.tobytes() if hasattr(each, "tobytes") else each for each in state)
