"""What ``meltr verify`` and ``meltr bench`` have in common."""

from __future__ import annotations

import os

from meltr.errors import UserError, did_you_mean
from meltr.plugins import Registry
from meltr.specs import RunSpec


def learned_spec(registry: Registry, spec: RunSpec) -> RunSpec:
    """Return `spec` if its combiner is trained by a hypergradient.

    Raises:
        UserError: If it is not: then there is nothing to measure.
    """
    if not registry.combiner(spec.combiner).learned:
        able = [info.name for info in registry.combiners.values() if info.learned]
        message = f"combiner {spec.combiner!r} is not trained by a hypergradient: there is nothing to measure"
        raise UserError(message, did_you_mean(spec.combiner, able))
    return spec


def quiet_profiler() -> None:
    """Keep the profiler, which measures memory on the CPU, from writing remarks of its own; call before torch comes."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def one_process() -> None:
    """Refuse to measure several processes.

    Raises:
        UserError: If torchrun started more than one.
    """
    workers = int(os.environ.get("WORLD_SIZE", "1"))
    if workers > 1:
        raise UserError(f"this command measures one process, but WORLD_SIZE is {workers}", "Start it without torchrun.")
