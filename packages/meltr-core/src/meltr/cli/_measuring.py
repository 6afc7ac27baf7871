"""Helpers shared by ``meltr verify`` and ``meltr bench``."""

from __future__ import annotations

import os

from meltr.errors import UserError, did_you_mean
from meltr.plugins import Registry
from meltr.specs import RunSpec


def learned_spec(registry: Registry, spec: RunSpec) -> RunSpec:
    """Return `spec` if its combiner is trained by a hypergradient.

    Raises:
        UserError: If it is not, so that there is nothing to measure.
    """
    if not registry.combiner(spec.combiner).learned:
        able = [info.name for info in registry.combiners.values() if info.learned]
        message = f"combiner {spec.combiner!r} is not trained by a hypergradient: there is nothing to measure"
        raise UserError(message, did_you_mean(spec.combiner, able))
    return spec


def quiet_profiler() -> None:
    """Silence the profiler, which measures memory on the CPU; call this before torch is imported."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def one_process() -> None:
    """Check that there is only one process.

    Raises:
        UserError: If torchrun started several processes.
    """
    workers = int(os.environ.get("WORLD_SIZE", "1"))
    if workers > 1:
        raise UserError(f"this command measures one process, but WORLD_SIZE is {workers}", "Start it without torchrun.")
