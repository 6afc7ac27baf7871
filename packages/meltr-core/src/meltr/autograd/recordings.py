"""One kind of evaluation of the losses as CUDA graphs, with its static inputs and results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

from meltr.autograd.buffers import BufferState
from meltr.autograd.capturing import waits_refused
from meltr.autograd.graph import shared_backwards
from meltr.autograd.leaves import reached_leaves
from meltr.autograd.losses import Losses, as_parts
from meltr.autograd.random_state import RandomState
from meltr.torch_private import buffers_of, copy_each, map_tensors, tree_leaves

Record = Callable[[Callable[[], None], list[Any]], Callable[[], None]]
"""Runs a function once while recording its kernels; returns a function that launches them again.

The list is empty at first, and the same for functions that are launched one after the other in the order in which they
were recorded: they may use the same memory for what they do not keep.
"""

TOLERANCE = 1e-2
"""Largest relative difference between a recording and a plain evaluation; they run the same kernels."""

APART = 1.5
"""Each loss gets a backward pass of its own if together these take fewer operations than this many through all."""

_fixed: ContextVar[Sequence[Tensor] | None] = ContextVar("fixed_tangents", default=None)


class NotRecordedError(Exception):
    """The losses cannot be recorded; the message says why."""


@contextmanager
def fixed_tangents(memory: Sequence[Tensor]) -> Iterator[None]:
    """Promise that all tangents of dual numbers within this context lie in `memory`, so that they can be recorded."""
    token = _fixed.set(memory)
    try:
        yield
    finally:
        _fixed.reset(token)


def tangents_in_use() -> Sequence[Tensor] | None:
    """Return the memory that `fixed_tangents` named; None if the tangents may lie anywhere."""
    return _fixed.get()


class _Evaluation:
    """What an evaluation with a graph and one with dual numbers have in common.

    Args:
        model: The backbone.
        compute: From a batch to its losses.
        batch: The batch of the recording.
        record: Records a function.
        start: The random numbers that the evaluation starts from, which are restored.
    """

    def __init__(
        self, model: nn.Module, compute: Callable[[Any], Losses], batch: Any, record: Record, start: RandomState
    ) -> None:
        self._together: list[Any] = []
        torch.clear_autocast_cache()
        before = BufferState(model)
        with before.aside(), waits_refused(_device(model, batch)):
            expected = compute(batch)
            found = self._plain(as_parts(expected))
            self.names = tuple(expected) if isinstance(expected, Mapping) else None
        del expected
        self._batch = map_tensors(lambda tensor: tensor.detach().clone(), batch)
        self._inputs = by_type(tensors_of(self._batch))
        self._outputs = torch.zeros_like(found)
        with before.aside():  # the recording works on these copies of the buffers, now and later
            held = [dict(buffers_of(module)) for module in model.modules()]
            self._replay = record(lambda: self._run(compute), self._together)
            theirs = [buffers_of(module) for module in model.modules()]
            pairs = zip(held, theirs, strict=True)
            if any(now.get(name) is not mine for own, now in pairs for name, mine in own.items()):
                raise NotRecordedError("the model replaces its buffers")
            self._record_more(record)
        self._buffers = [
            (mine, now, name)
            for own, now in zip(held, theirs, strict=True)
            for name, mine in own.items()
            if mine is not None
        ]
        start.restore()
        with torch.no_grad(), BufferState(model).aside():
            again = self.evaluate(batch)
        if not bool(((again - found).abs() <= TOLERANCE * found.abs().clamp_min(1e-6)).all()):
            raise NotRecordedError("a replay gave other losses than the losses themselves")
        start.restore()

    def _plain(self, parts: tuple[Tensor, ...]) -> Tensor:
        """Return the results of an evaluation as one tensor."""
        raise AssertionError("specification only")

    def _record_more(self, record: Record) -> None:
        """Record what follows the evaluation."""

    def _run(self, compute: Callable[[Any], Losses]) -> None:
        torch.clear_autocast_cache()
        parts = as_parts(compute(self._batch))
        torch.clear_autocast_cache()
        if len({part.dtype for part in parts}) > 1:
            raise NotRecordedError("the losses have several data types")
        self._outputs.copy_(self._plain(parts))

    def evaluate(self, batch: Any) -> Tensor:
        """Launch the evaluation; return its results as a new tensor."""
        for own, given in zip(self._inputs, by_type(tensors_of(batch)), strict=True):
            copy_each(own, given)
        pairs = [(mine, buffer) for mine, held, name in self._buffers if (buffer := held.get(name)) is not None]
        moved = list(zip(by_type([own for own, _ in pairs]), by_type([one for _, one in pairs]), strict=True))
        for own, theirs in moved:
            copy_each(own, theirs)
        self._replay()
        for own, theirs in moved:
            copy_each(theirs, own)
        return self._outputs.clone()

    def _named(self, parts: Sequence[Tensor]) -> Losses:
        return tuple(parts) if self.names is None else dict(zip(self.names, parts, strict=True))


class Recording(_Evaluation):
    """An evaluation and its backward passes. Arguments as in `_Evaluation`; without a graph if gradients are off."""

    def __init__(
        self, model: nn.Module, compute: Callable[[Any], Losses], batch: Any, record: Record, start: RandomState
    ) -> None:
        self._with_graph = torch.is_grad_enabled()
        self.leaves: list[Tensor] = []
        self._parts: tuple[Tensor, ...] = ()
        self.evaluations = 0
        self._backwards: dict[tuple[int, ...], tuple[Callable[[], None], list[bool]]] = {}
        super().__init__(model, compute, batch, record, start)

    def _plain(self, parts: tuple[Tensor, ...]) -> Tensor:
        if self._with_graph:
            self.leaves, self._parts = self.leaves or reached_leaves(parts), parts
        return torch.stack([part.detach() for part in parts])

    def _record_more(self, record: Record) -> None:
        if not self._with_graph:
            return
        live = tuple(place for place, part in enumerate(self._parts) if part.requires_grad)
        self._weights = torch.ones_like(self._outputs)
        self._gradient = [torch.zeros_like(leaf) for leaf in self.leaves]
        apart = len(live) > 1 and shared_backwards([self._parts[place] for place in live]) < APART
        for chosen in [live, *((place,) for place in live if apart)]:
            self._record_backward(record, chosen)

    def _record_backward(self, record: Record, chosen: tuple[int, ...]) -> None:
        """Record the backward pass of some losses; it writes to the same memory as every other one."""
        reached: list[bool] = []

        def differentiate() -> None:
            found = torch.autograd.grad(
                [self._parts[place] for place in chosen],
                self.leaves,
                [self._weights[place] for place in chosen],
                retain_graph=True,  # the graph keeps the activations where the recorded kernels expect them
                allow_unused=True,
            )
            if any(part is not None and part.is_sparse for part in found):
                raise NotRecordedError("a gradient is sparse")
            reached[:] = [part is not None for part in found]
            pairs = [(own, part) for own, part in zip(self._gradient, found, strict=True) if part is not None]
            for own, parts in zip(by_type([o for o, _ in pairs]), by_type([p for _, p in pairs]), strict=True):
                copy_each(own, parts)

        self._backwards[chosen] = record(differentiate, self._together), reached

    def __call__(self, batch: Any) -> Losses:
        """Launch the evaluation; return the losses, with a graph if the recording has one."""
        if not self._with_graph:
            return self._named(self.evaluate(batch).unbind())
        parts: tuple[Tensor, ...] = _Graphed.apply(self, batch, *self.leaves)
        return self._named(parts)

    def evaluate(self, batch: Any) -> Tensor:
        """Launch the evaluation; return the losses, shape (T+1,)."""
        self.evaluations += 1
        return super().evaluate(batch)

    def gradient(self, weights: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Launch the backward pass of the losses with a weight; return the gradient of their weighted sum."""
        chosen = tuple(place for place, weight in enumerate(weights) if weight is not None)
        if chosen not in self._backwards:
            chosen = next(iter(self._backwards))  # all of them
        for place in chosen:
            weight = weights[place]
            self._weights[place].fill_(0.0) if weight is None else self._weights[place].copy_(weight)
        replay, reached = self._backwards[chosen]
        replay()
        found = [part for part, used in zip(self._gradient, reached, strict=True) if used]
        copies = [torch.empty_like(part) for part in found]
        for own, parts in zip(by_type(copies), by_type(found), strict=True):
            copy_each(own, parts)
        rest = iter(copies)
        return [next(rest) if used else None for used in reached]


class _Graphed(torch.autograd.Function):
    """The losses of a recording as a function of the leaves."""

    @staticmethod
    def forward(ctx: Any, recording: Recording, batch: Any, *leaves: Tensor) -> tuple[Tensor, ...]:
        values = recording.evaluate(batch)
        ctx.recording, ctx.number = recording, recording.evaluations
        ctx.set_materialize_grads(False)
        return values.unbind()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *weights: Tensor | None) -> tuple[Tensor | None, ...]:
        if ctx.number != ctx.recording.evaluations:
            raise RuntimeError(
                "two graphs of one kind of batch are alive, and a recording holds only one: use cuda_graphs=false"
            )
        return None, None, *ctx.recording.gradient(weights)


class DualRecording(_Evaluation):
    """An evaluation with dual numbers whose tangents lie in fixed memory (`fixed_tangents`). Arguments as above.

    Attributes:
        memory: That memory, which must stay where it is.
    """

    def __init__(
        self, model: nn.Module, compute: Callable[[Any], Losses], batch: Any, record: Record, start: RandomState
    ) -> None:
        self.memory = tangents_in_use()
        super().__init__(model, compute, batch, record, start)

    def _plain(self, parts: tuple[Tensor, ...]) -> Tensor:
        """Return the losses and their tangents, shape (2, T+1)."""
        pairs = [forward_ad.unpack_dual(part) for part in parts]
        values = [pair.primal.detach() for pair in pairs]
        tangents = [torch.zeros_like(v) if p.tangent is None else p.tangent for v, p in zip(values, pairs, strict=True)]
        return torch.stack([torch.stack(values), torch.stack([each.detach() for each in tangents])])

    def __call__(self, batch: Any) -> Losses:
        """Launch the evaluation; return the losses as dual numbers."""
        values, tangents = self.evaluate(batch)
        return self._named([forward_ad.make_dual(v, t) for v, t in zip(values, tangents, strict=True)])


def tensors_of(batch: Any) -> list[Tensor]:
    """Return the tensors of a batch, in a fixed order."""
    return [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]


def _device(model: nn.Module, batch: Any) -> torch.device:
    """Return where the losses are computed."""
    return next((each.device for each in (*model.parameters(), *tensors_of(batch))), torch.device("cpu"))


def by_type(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Return tensors in groups of one data type: a copy of a mixed group takes one launch for each tensor."""
    groups: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.dtype, []).append(tensor)
    return list(groups.values())
