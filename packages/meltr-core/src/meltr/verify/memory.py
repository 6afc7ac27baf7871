"""Peak memory of a piece of work, above the memory in use when it starts."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

MIB = 2**20


def peak_memory(work: Callable[[], object], device: torch.device) -> float | None:
    """Return the peak memory in MiB that torch allocates on `device` while `work` runs, above that in use before.

    On CUDA it comes from the allocator's statistics, on the CPU from the profiler's memory events. The profiler does
    not report the freeing of memory allocated before, nor memory that torch did not allocate (such as a library's
    workspace).

    Args:
        work: Called once.
        device: Device of the work.

    Returns:
        The peak; None on devices whose allocator does not record it (`work` is called anyway).
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        base = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return max(0, torch.cuda.max_memory_allocated(device) - base) / MIB
    if device.type != "cpu":
        work()
        return None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    kineto = recorded.profiler.kineto_results if recorded.profiler is not None else None
    events = [] if kineto is None else [event for event in kineto.events() if event.name() == "[memory]"]
    sizes: list[int] = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(itertools.accumulate(sizes, initial=0)) / MIB
