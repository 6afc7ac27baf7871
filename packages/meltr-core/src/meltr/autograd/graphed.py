"""Losses of a batch as CUDA graphs: an evaluation is one launch, and so is its backward pass.

A small step is bound by the host, which launches a thousand kernels one by one. With graphs it launches two. Everything
that uses the losses (vector-Jacobian products, evaluations at displaced weights, the inner gradient) works as before.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from meltr.autograd.buffers import BufferState
from meltr.autograd.leaves import reached_leaves
from meltr.autograd.losses import Compute, Losses, as_parts
from meltr.autograd.random_state import RandomState
from meltr.torch_private import buffers_of, copy_each, dual_numbers_in_use, map_tensors, tree_leaves

Record = Callable[[Callable[[], None]], Callable[[], None]]
"""Runs a function once while recording its kernels; returns a function that launches them again."""

_PLAIN_CALLS = 2
"""Evaluations before a recording: libraries choose their kernels in the first ones."""

_MOST = 6
"""Recordings that are kept; evaluations of further kinds (other shapes, losses, precisions) run as they are."""

_TOLERANCE = 1e-2
"""Largest relative difference between a recording and a plain evaluation; they run the same kernels."""


class NotRecordedError(Exception):
    """The losses cannot be recorded; the message says why."""


def cuda_record(generators: Sequence[torch.Generator]) -> Record:
    """Return what records CUDA graphs.

    Args:
        generators: Generators that the losses draw from, besides the global ones.
    """

    def record(function: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        for generator in generators:
            if generator.device.type == "cuda":
                graph.register_generator_state(generator)
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            function()
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
        self._recordings: dict[Hashable, _Recording] = {}
        self._reason = ""

    @property
    def refused(self) -> str:
        """Why the losses are not recorded; empty if they are, or may be."""
        return self._reason

    @property
    def count(self) -> int:
        """Number of recordings."""
        return len(self._recordings)

    def of(self, compute: Callable[[Any], Losses], batch: Any, what: Hashable) -> Compute:
        """Return a function that evaluates the losses of a batch.

        Args:
            compute: From a batch to its losses.
            batch: Nested dicts, lists and tuples of tensors on the device.
            what: What else the losses depend on, such as their names.
        """
        return lambda: self._evaluate(compute, batch, what)

    def _evaluate(self, compute: Callable[[Any], Losses], batch: Any, what: Hashable) -> Losses:
        if self._reason or dual_numbers_in_use():
            return compute(batch)
        frozen = tuple(parameter.requires_grad for parameter in self._model.parameters())
        key = (what, _kind_of(batch), torch.is_grad_enabled(), self._model.training, frozen, *_precision())
        if key not in self._recordings:
            self._calls[key] = self._calls.get(key, 0) + 1
            if self._calls[key] <= _PLAIN_CALLS or len(self._recordings) >= _MOST:
                return self._watched(compute, batch)
            start = self._snapshot()
            try:
                self._recordings[key] = _Recording(self._model, compute, batch, self._record, start)
            except (NotRecordedError, RuntimeError) as error:
                start.restore()  # the attempt drew numbers; this evaluation draws those of a plain one
                self._refuse(str(error).strip().splitlines()[0])
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
        self._recordings.clear()
        self._log(f"cuda_graphs: not used, {reason}")


class _Recording:
    """One kind of evaluation: its static inputs and results, and the graphs between them."""

    def __init__(
        self, model: nn.Module, compute: Callable[[Any], Losses], batch: Any, record: Record, start: RandomState
    ) -> None:
        self._model = model
        self._with_graph = torch.is_grad_enabled()
        torch.clear_autocast_cache()
        before = BufferState(model)
        with before.aside():
            expected = compute(batch)
            plain = torch.stack([part.detach() for part in as_parts(expected)])
            self.names = tuple(expected) if isinstance(expected, Mapping) else None
            self.leaves = reached_leaves(as_parts(expected)) if self._with_graph else []
        del expected
        self._batch = map_tensors(lambda tensor: tensor.detach().clone(), batch)
        self._inputs = _tensors(self._batch)
        self._parts: tuple[Tensor, ...] = ()
        self._values = torch.zeros_like(plain)
        self.evaluations = 0
        with before.aside():  # the recording works on these copies of the buffers, now and later
            self._buffers = [dict(buffers_of(module)) for module in model.modules()]
            self._replay = record(lambda: self._run(compute))
            if any(list(own.values()) != list(buffers_of(m).values()) for own, m in self._pairs()):
                raise NotRecordedError("the model replaces its buffers")
            self._weights = torch.ones_like(plain)
            self._gradient: list[Tensor | None] = []
            self._replay_backward = record(self._differentiate) if self._with_graph else None
        start.restore()
        self._check(plain, batch)
        start.restore()

    def _pairs(self) -> list[tuple[dict[str, Tensor | None], nn.Module]]:
        return list(zip(self._buffers, self._model.modules(), strict=True))

    def _run(self, compute: Callable[[Any], Losses]) -> None:
        torch.clear_autocast_cache()
        self._parts = as_parts(compute(self._batch))
        torch.clear_autocast_cache()
        if len({part.dtype for part in self._parts}) > 1:
            raise NotRecordedError("the losses have several data types")
        self._values.copy_(torch.stack([part.detach() for part in self._parts]))

    def _differentiate(self) -> None:
        live = [(part, weight) for part, weight in zip(self._parts, self._weights, strict=True) if part.requires_grad]
        self._gradient = list(
            torch.autograd.grad(
                [part for part, _ in live],
                self.leaves,
                [weight for _, weight in live],
                retain_graph=True,  # the graph keeps the activations where the recorded kernels expect them
                allow_unused=True,
            )
        )

    def _check(self, plain: Tensor, batch: Any) -> None:
        """Compare a replay with the plain evaluation, both from the same random numbers."""
        with torch.no_grad(), BufferState(self._model).aside():
            self.evaluate(batch)
        if not bool(((self._values - plain).abs() <= _TOLERANCE * plain.abs().clamp_min(1e-6)).all()):
            raise NotRecordedError("a replay gave other losses than the losses themselves")

    def __call__(self, batch: Any) -> Losses:
        values: Tensor = _Graphed.apply(self, batch, *self.leaves) if self._with_graph else self.evaluate(batch)
        parts = values.unbind()
        return parts if self.names is None else dict(zip(self.names, parts, strict=True))

    def evaluate(self, batch: Any) -> Tensor:
        """Launch the evaluation; return the losses, shape (T+1,)."""
        self.evaluations += 1
        copy_each(self._inputs, _tensors(batch))
        own, theirs = self._changing()
        if own:
            copy_each(own, theirs)
        self._replay()
        if own:
            copy_each(theirs, own)
        return self._values.clone()

    def gradient(self, weights: Tensor) -> list[Tensor | None]:
        """Launch the backward pass; return the gradient of the weighted sum by the leaves."""
        assert self._replay_backward is not None
        self._weights.copy_(weights)
        self._replay_backward()
        found = [part for part in self._gradient if part is not None]
        copies = [torch.empty_like(part) for part in found]
        copy_each(copies, found)
        rest = iter(copies)
        return [None if part is None else next(rest) for part in self._gradient]

    def _changing(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the recording's buffers and the model's, which a forward pass may change."""
        own, theirs = [], []
        for held, module in self._pairs():
            for name, buffer in buffers_of(module).items():
                mine = held[name]
                if buffer is not None and mine is not None:
                    own.append(mine)
                    theirs.append(buffer)
        return own, theirs


class _Graphed(torch.autograd.Function):
    """The losses of a recording as a function of the leaves."""

    @staticmethod
    def forward(ctx: Any, recording: _Recording, batch: Any, *leaves: Tensor) -> Tensor:
        values = recording.evaluate(batch)
        ctx.recording, ctx.number = recording, recording.evaluations
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.number != ctx.recording.evaluations:
            raise RuntimeError(
                "two graphs of one kind of batch are alive, and a recording holds only one: use cuda_graphs=false"
            )
        return None, None, *ctx.recording.gradient(weights)


def _tensors(batch: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]


def _kind_of(batch: Any) -> Hashable:
    """Return the structure of a batch: shapes and types of tensors; other values as text."""
    return tuple(
        (tuple(leaf.shape), leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else repr(leaf)
        for leaf in tree_leaves(batch)
    )


def _precision() -> tuple[Hashable, ...]:
    autocast = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cpu")
    return *autocast, torch.get_float32_matmul_precision()
