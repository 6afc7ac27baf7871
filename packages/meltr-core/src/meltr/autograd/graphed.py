"""Losses of a batch as CUDA graphs: an evaluation is one launch, and so is its backward pass.

A small step is bound by the host, which launches a thousand kernels one by one. With graphs it launches two. Everything
that uses the losses (vector-Jacobian products, evaluations at displaced weights, the inner gradient) works as before.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from meltr.autograd.capturing import capture
from meltr.autograd.losses import Compute, Losses
from meltr.autograd.random_state import RandomState
from meltr.autograd.recordings import DualRecording, NotRecordedError, Record, Recording, tangents_in_use
from meltr.torch_private import dual_numbers_in_use, tree_leaves

_PLAIN_CALLS = 2
"""Evaluations before a recording: libraries choose their kernels in the first ones."""

_MOST = 6
"""Recordings that are kept; evaluations of further kinds (other shapes, losses, precisions) run as they are."""


def cuda_record(device: torch.device, generators: Sequence[torch.Generator] = ()) -> Record:
    """Return what records CUDA graphs.

    Args:
        device: Where the losses are computed.
        generators: Generators that the losses draw from, besides the global ones.
    """

    def record(function: Callable[[], None], together: list[Any]) -> Callable[[], None]:
        graph = capture(function, device, pool=together[0] if together else None, generators=generators)
        together[:] = [graph.pool()]
        return graph.replay

    return record


class GraphedLosses:
    """Makes loss functions of batches that are recorded once per kind of evaluation, and replayed.

    A recording holds what the evaluation did on the device. So the losses must do nothing else: no decision from
    values, no random numbers from the host, no counter. What can be checked is checked at the recording: draws from the
    host's generators, waiting for the device, new buffers, and the losses of a replay against a plain evaluation.
    Losses that fail are evaluated as they are, and `log` says why.

    Args:
        model: The backbone.
        record: Records a function, see `cuda_record`.
        snapshot: Returns the state of all generators.
        log: Called with one line of text.
    """

    def __init__(
        self,
        model: nn.Module,
        record: Record,
        snapshot: Callable[[], RandomState],
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._model, self._record, self._snapshot, self._log = model, record, snapshot, log
        self._calls: dict[Hashable, int] = {}
        self._recordings: dict[Hashable, Recording | DualRecording] = {}
        self._reason = ""

    @property
    def refused(self) -> str:
        """Why the losses are not recorded; empty if they are, or may be."""
        return self._reason

    @property
    def count(self) -> int:
        """Number of recordings."""
        return len(self._recordings)

    def clear(self) -> None:
        """Give up the recordings and their memory; later evaluations are recorded anew."""
        self._recordings.clear()

    def of(self, compute: Callable[[Any], Losses], batch: Any, what: Hashable) -> Compute:
        """Return a function that evaluates the losses of a batch.

        Args:
            compute: From a batch to its losses.
            batch: Nested dicts, lists and tuples of tensors on the device.
            what: What else the losses depend on, such as their names.
        """
        return lambda: self._evaluate(compute, batch, what)

    def _evaluate(self, compute: Callable[[Any], Losses], batch: Any, what: Hashable) -> Losses:
        tangents = tangents_in_use()
        dual = dual_numbers_in_use()
        if self._reason or (dual and tangents is None):
            return compute(batch)
        kind: type[Recording | DualRecording] = DualRecording if dual else Recording
        weights = tuple((each.requires_grad, each.data_ptr()) for each in self._model.parameters())
        how = kind, id(tangents) if dual else None, torch.is_grad_enabled(), self._model.training, weights
        key = (what, _kind_of(batch), *how, *_precision())
        if key not in self._recordings:
            self._calls[key] = self._calls.get(key, 0) + 1
            if self._calls[key] <= _PLAIN_CALLS or len(self._recordings) >= _MOST:
                return self._watched(compute, batch)
            start = self._snapshot()
            try:
                self._recordings[key] = kind(self._model, compute, batch, self._record, start)
            except (NotRecordedError, RuntimeError) as error:
                start.restore()  # the attempt drew numbers; this evaluation draws those of a plain one
                self._refuse(_cause(error))
                return compute(batch)
        return self._recordings[key](batch)

    def _watched(self, compute: Callable[[Any], Losses], batch: Any) -> Losses:
        """Evaluate the losses, and see whether they draw random numbers on the host."""
        before = RandomState()
        losses = compute(batch)
        if not before.is_host_of(RandomState()):
            self._refuse("the losses draw random numbers on the host")
        return losses

    def _refuse(self, reason: str) -> None:
        self._reason = reason
        self.clear()
        self._log(f"cuda_graphs: not used, {reason}")


def _kind_of(batch: Any) -> Hashable:
    """Return the structure of a batch: shapes and types of tensors; other values as text."""
    return tuple(
        (tuple(leaf.shape), leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else repr(leaf)
        for leaf in tree_leaves(batch)
    )


def _precision() -> tuple[Hashable, ...]:
    autocast = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cpu")
    return *autocast, torch.get_float32_matmul_precision()


def _cause(error: BaseException) -> str:
    """Return the first line of what went wrong first: a recording that fails then reports a second error."""
    while error.__context__ is not None:
        error = error.__context__
    return (str(error).strip() or type(error).__name__).splitlines()[0]
