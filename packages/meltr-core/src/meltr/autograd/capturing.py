"""Capturing CUDA graphs; a capture that fails leaves nothing behind that later steps would meet."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import torch

from meltr.torch_private import abandon_pool


def capture(
    function: Callable[[], None],
    device: torch.device,
    *,
    pool: Any = None,
    generators: Sequence[torch.Generator] = (),
) -> torch.cuda.CUDAGraph:
    """Call a function and return what it launched on a CUDA device as a graph.

    If the capture fails, the error is raised, and the process works as before. That is not so by itself: torch before
    version 2.15 then stays on the stream of the capture, refuses to draw random numbers on the device ("Offset
    increment outside graph capture"), and never again frees memory that two streams have used, such as batches.

    Args:
        function: Launches kernels, and does not wait for the device.
        device: Where; nothing that runs on another device is captured.
        pool: Memory of another graph, `torch.cuda.CUDAGraph.pool`, which this one may use too; None: its own.
        generators: Generators on the device that the function draws from, besides the global one.
    """
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream()
        pool = torch.cuda.graph_pool_handle() if pool is None else pool
        graph = _graph(generators)
        try:
            with _nothing_collected(), _capturing(graph, pool):
                function()
        except BaseException:
            torch.cuda.set_stream(stream)
            abandon_pool(pool)
            _end_of_draws(generators)
            raise
        return graph


def _capturing(graph: torch.cuda.CUDAGraph, pool: Any = None) -> AbstractContextManager[None]:
    """Return torch's context of a capture on the current device; by itself it uses the device of its first call."""
    stream = _stream(torch.cuda.current_device())
    # Other threads (those that pin memory for a data loader) may allocate meanwhile.
    return torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local")


@functools.cache
def _stream(number: int) -> torch.cuda.Stream:
    """Return the stream of all captures on a device, so that graphs can share memory."""
    return torch.cuda.Stream(number)


@contextmanager
def waits_refused(device: torch.device) -> Iterator[None]:
    """Make waiting for a CUDA device an error within this context, so that it is found before a capture.

    torch says that it does not notice every kind of wait. A capture fails at the others.

    Args:
        device: Where the work runs; nothing changes on others.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _graph(generators: Sequence[torch.Generator]) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        if generator.device.type == "cuda":
            graph.register_generator_state(generator)
    return graph


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """Suspend the garbage collection: a graph that is destroyed during a capture makes it fail."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _end_of_draws(generators: Sequence[torch.Generator]) -> None:
    """Let generators draw outside of graphs again: the end of a capture that succeeds does that, so one follows."""
    with suppress(RuntimeError), _capturing(_graph(generators)):
        torch.zeros((), device="cuda")
