"""The task losses of a batch as a function of the weights: every evaluation draws the same random numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from meltr.autograd.buffers import BufferState
from meltr.autograd.leaves import gradients_kept
from meltr.autograd.losses import Compute
from meltr.autograd.random_state import RandomState
from meltr.hypergradients.loss_values import BatchValues
from meltr.hypergradients.reduced_model import ReducedModel
from meltr.hypergradients.setup import ModelSetup
from meltr.parallel.sharing import Averaging
from meltr.torch_private import dual_numbers_in_use


class _How(NamedTuple):
    """The arguments of `LossFunction.run`."""

    graph: bool
    replay: bool
    keep_buffers: bool
    precise: bool
    averaging: Averaging | None


_NEEDS_GRAPH = re.compile(r"requires?[ _]grad")
"""In the errors of operations that need a graph, such as ``autograd.grad``, ``backward`` and ``register_hook``."""


class LossFunction:
    """The task losses of one batch: evaluated once as in any training step, then again as often as needed.

    Args:
        compute: Returns the losses (see `meltr.autograd.losses.Losses`), primary first.
        setup: Model, precision and generators.
        reduced: The part of the model that outer steps consider; modules below it are not evaluated again.
        math_attention: Run attention on the math kernel, the only one with a second derivative.
        replayable: False if there will be no second evaluation; this saves copies of buffers and generators.
    """

    def __init__(
        self,
        compute: Compute,
        setup: ModelSetup,
        *,
        reduced: ReducedModel | None = None,
        math_attention: bool = False,
        replayable: bool = True,
    ) -> None:
        self.setup = setup
        self._compute, self._reduced = compute, reduced
        self._math_attention, self._replayable = math_attention, replayable
        self._start: tuple[RandomState, BufferState] | None = None

    def run(
        self,
        *,
        graph: bool,
        replay: bool = False,
        keep_buffers: bool = False,
        precise: bool = False,
        averaging: Averaging | None = None,
    ) -> BatchValues:
        """Evaluate the losses at the current weights.

        Args:
            graph: Build the autograd graph.
            replay: Start from the random numbers of the first evaluation, and restore the generators afterwards.
            keep_buffers: Leave buffers (BatchNorm's running statistics) unchanged, and start from those of the first
                evaluation. False: they change as in any forward pass. With `replay`, modules below the scope are not
                evaluated again: their first output is used.
            precise: Evaluate in full float32, whatever the precision of training.
            averaging: How an inner gradient taken from this graph is averaged over processes; None: none is taken.
        """
        how = _How(graph, replay, keep_buffers, precise, averaging)
        if graph or self.setup.losses_differentiate:
            return self._evaluate(how, differentiable=True)
        before = self.setup.buffer_state() if replay and not keep_buffers else None
        try:
            return self._evaluate(how, differentiable=False)
        except RuntimeError as error:
            if not _NEEDS_GRAPH.search(str(error)):
                raise
        if not replay:
            self._begun[0].restore()
            before = self._begun[1]
        if before is not None:
            before.restore()
        values = self._evaluate(how, differentiable=True)
        self.setup.losses_differentiate = True
        return values

    def _evaluate(self, how: _How, *, differentiable: bool) -> BatchValues:
        """Evaluate the losses.

        Args:
            how: The arguments of `run`.
            differentiable: The losses may differentiate by themselves (a gradient penalty, an adversarial example),
                which fails under ``torch.no_grad``; a graph that is not asked for is discarded.
        """
        with ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(differentiable))
            if how.keep_buffers and not how.replay:
                stack.enter_context(self.setup.preserved_buffers())
            stack.enter_context(self._replayed() if how.replay else self._recorded(how))
            if self.setup.trained.moving and (how.replay or how.keep_buffers) and not dual_numbers_in_use():
                stack.enter_context(self.setup.trained.unchanged())
            if how.keep_buffers and how.replay:
                stack.enter_context(self._begun[1].aside())
                stack.enter_context(self.setup.newcomers_preserved(stack))
            if how.replay and how.keep_buffers and self._reduced is not None:
                stack.enter_context(self._reduced.skipping(self))
            if (differentiable and not how.graph) or (self.setup.losses_differentiate and how.keep_buffers):
                stack.enter_context(gradients_kept(self.setup.model))
            parts = self._call(how.precise, how.averaging)
        if differentiable and not how.graph:
            parts = tuple(part if _has_tangent(part) else part.detach() for part in parts)
        return BatchValues(self, parts, averaging=how.averaging)

    def _call(self, precise: bool, averaging: Averaging | None) -> tuple[Tensor, ...]:
        """Return the losses, 0-dim each, in the precision of training or in full float32."""
        setup = self.setup
        with ExitStack() as stack:
            if self._math_attention:
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if precise:
                stack.enter_context(_no_tf32())
                stack.enter_context(torch.autocast(setup.device.type, enabled=False))
            elif setup.autocast is not None:
                cached = setup.sharing.autocast_cache
                stack.enter_context(torch.autocast(setup.device.type, dtype=setup.autocast, cache_enabled=cached))
            return setup.sharing.evaluate(self._compute, inner=averaging == "backward")

    @contextmanager
    def _recorded(self, how: _How) -> Iterator[None]:
        """Within this context, a first evaluation records what later ones need."""
        if not self._replayable:
            yield
            return
        buffers, trained = self.setup.buffer_state(), self.setup.trained
        weights = trained.look(self.setup.beside.roots())
        self._start = self.setup.random_state(), buffers
        with buffers.filled_in(), self.setup.beside.watched(buffers.add), self._recording(how.graph):
            yield
        buffers.learn()
        before = len(trained.moving)
        trained.learn(weights)
        if how.keep_buffers and len(trained.moving) > before:
            raise trained.refused(trained.moving[-1])

    def _recording(self, graph: bool) -> AbstractContextManager[Any]:
        if self._reduced is None or not graph:
            return nullcontext()
        return self._reduced.recording(self, self.setup.random_state)

    @contextmanager
    def _replayed(self) -> Iterator[None]:
        now = self.setup.random_state()
        self._begun[0].restore()
        try:
            yield
        finally:
            now.restore()

    def may_have_moved_buffers(self) -> bool:
        """Tell whether the first evaluation may have changed buffers, or has changed what else modules hold."""
        return self._begun[1].may_have_moved()

    @property
    def _begun(self) -> tuple[RandomState, BufferState]:
        if self._start is None:
            raise RuntimeError("this loss function recorded no state that a second evaluation could start from")
        return self._start


def _has_tangent(part: Tensor) -> bool:
    """Tell whether a loss is a dual number, whose tangent `detach` would drop."""
    return forward_ad.unpack_dual(part).tangent is not None


@contextmanager
def _no_tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    if before == "highest":  # setting it again would change the state by which compiled functions are found
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
