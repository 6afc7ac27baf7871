"""Functions of small tensors as CUDA graphs: one launch instead of one per operation."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from meltr.autograd.capturing import capture

Function = Callable[..., Sequence[Tensor | None]]

_EAGER_CALLS = 2
"""Calls before the capture: libraries choose their kernels and allocate their work space in the first ones."""


class Captured:
    """A function that is captured as a CUDA graph and replayed, where that computes the same; otherwise it is called.

    A small transformer on a handful of numbers takes microseconds on the card and milliseconds on the host, which
    launches about a hundred kernels one by one. A replay is one launch.

    A graph is replayed only while the shapes of the inputs and `signature` are the same. If the capture fails, the
    function is called as it is from then on.

    Args:
        function: From tensors to tensors; on CUDA it must not draw random numbers, wait for the device, or depend on
            anything but its inputs, tensors whose memory stays the same, and `signature`.
        signature: Returns what else the function depends on: the addresses of parameters, modes, settings.
        log: Called with one line of text if the capture fails.
    """

    def __init__(
        self, function: Function, *, signature: Callable[[], Hashable], log: Callable[[str], None] = lambda line: None
    ) -> None:
        self._function, self._signature, self._log = function, signature, log
        self._graph: _Graph | None = None
        self._calls, self._failed = 0, False
        self._of: Hashable = None

    @property
    def replays(self) -> bool:
        """True if the last call replayed a graph or captured one."""
        return self._graph is not None

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor | None]:
        """Return the function's result; on CUDA, tensors that the next call overwrites."""
        if self._failed or not inputs or inputs[0].device.type != "cuda":
            return self._function(*inputs)
        key = (self._signature(), tuple((x.shape, x.dtype, x.device) for x in inputs))
        if key != self._of:
            self._graph, self._of, self._calls = None, key, 0
        self._calls += 1
        if self._graph is None:
            if self._calls <= _EAGER_CALLS or torch.cuda.is_current_stream_capturing():
                return self._function(*inputs)
            try:
                self._graph = _Graph(self._function, inputs)
            except RuntimeError as error:
                self._failed = True
                self._log(f"not captured as a CUDA graph: {str(error).strip().splitlines()[0]}")
                return self._function(*inputs)
        return self._graph.replay(inputs)


class _Graph:
    """One captured call: the memory of its inputs and outputs, and the graph between them."""

    def __init__(self, function: Function, inputs: Sequence[Tensor]) -> None:
        self._inputs = [each.detach().clone() for each in inputs]
        self._outputs: list[Tensor | None] = []

        def run() -> None:
            self._outputs = [None if each is None else each.detach() for each in function(*self._inputs)]

        self._graph = capture(run, inputs[0].device)

    def replay(self, inputs: Sequence[Tensor]) -> list[Tensor | None]:
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._graph.replay()
        return list(self._outputs)
