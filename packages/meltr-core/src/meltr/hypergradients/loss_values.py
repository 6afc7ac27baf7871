"""Losses with their graph: vector-Jacobian products, rows of the Jacobian, and the inner gradient."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from meltr.autograd.graph import needed_later, nodes_of
from meltr.autograd.leaves import deliver, hooks_withheld, reached_leaves
from meltr.autograd.vectors import Direction, add, dense, scale
from meltr.errors import LoopError
from meltr.hypergradients.rows import Rows
from meltr.hypergradients.setup import LOW_PRECISION, ModelSetup
from meltr.parallel.sharing import Averaging

if TYPE_CHECKING:
    from meltr.hypergradients.loss_function import LossFunction


REENTRANT = (
    "A part of the model is checkpointed with use_reentrant=True; such a graph has no gradient with respect to chosen "
    "weights, which outer steps need."
)
NOT_REENTRANT = (
    "Pass use_reentrant=False to torch.utils.checkpoint; in transformers: "
    "gradient_checkpointing_enable({'use_reentrant': False})."
)


class LossValues:
    """Differentiable losses at some weights, of a whole batch or of its micro-batches.

    Attributes:
        setup: Model, precision and generators.
    """

    setup: ModelSetup
    keeps_graph = True
    """False if micro-batches are evaluated anew for the next gradient: a backward pass then frees its graph."""

    @property
    def values(self) -> Tensor:
        """The losses l, shape (T+1,), detached: the mean over micro-batches and processes."""
        raise AssertionError("specification only")

    @property
    def size(self) -> int:
        """Number of losses, T+1."""
        return len(self.values)

    def micro_batches(self) -> Iterator[BatchValues]:
        """Yield the losses whose mean these are, each with its graph; only one needs to be alive at a time."""
        raise AssertionError("specification only")

    def functions(self) -> Sequence[LossFunction]:
        """Return the loss functions whose mean these losses are."""
        raise AssertionError("specification only")

    def run(self, *, graph: bool, precise: bool = False) -> LossValues:
        """Evaluate once more at the current weights; buffers and generators are restored.

        Args:
            graph: Build the autograd graph.
            precise: Evaluate in full float32.
        """
        raise AssertionError("specification only")

    def backward(self, weights: Tensor) -> None:
        """Add J^T weights to ``.grad`` of every leaf: averaged over processes, times the gradient scaler's factor.

        Raises:
            ValueError: If no loss depends on a leaf that requires a gradient.
        """
        raise AssertionError("specification only")

    def move_buffers(self) -> None:
        """Update buffers as an ordinary step does, where no `backward` does it."""

    @property
    def averaged_by_backward(self) -> bool:
        """True if gradients that pass through the leaves' own graph nodes are averaged over processes there."""
        return False

    def local_vjp(self, weights: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> Direction:
        """Return this process' share of J^T weights by one backward pass per micro-batch; the graph is kept.

        Gradient hooks of `parameters` are not called.

        Args:
            weights: One 0-dim tensor per loss; None skips the loss.
            parameters: Parameters to differentiate with respect to; unused ones get None.
        """
        total: Direction | None = None
        for batch in self.micro_batches():
            own = batch.own_vjp(weights, parameters, retain=self.keeps_graph)
            del batch  # and its graph, before the next one is built
            total = own if total is None else add(total, own)
        assert total is not None
        count = len(self.functions())
        return total if count == 1 else scale(total, 1 / count)

    def vjp(self, weights: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> Direction:
        """Return the vector-Jacobian product J^T weights, averaged over processes, dense; see `local_vjp`."""
        share = [dense(part) for part in self.local_vjp(weights, parameters)]
        return self.setup.sharing.mean_direction(share, parameters)

    def rows(self, parameters: Sequence[Tensor], *, retain: bool, everywhere: bool) -> Rows:
        """Return this process' share of the rows of J, the gradients of all losses, by one backward pass per loss.

        Args:
            parameters: The first leaves to differentiate with respect to; unused ones get None.
            retain: Keep the graph; otherwise each part of it is freed by the last backward pass that needs it.
            everywhere: Also differentiate with respect to all other leaves that the losses reach.
        """
        total: Rows | None = None
        for batch in self.micro_batches():
            own = batch.own_rows(parameters, retain=retain and self.keeps_graph, everywhere=everywhere)
            del batch  # and its graph, before the next one is built
            total = own if total is None else total.plus(own)
        assert total is not None
        count = len(self.functions())
        return total if count == 1 else total.scaled(1 / count)

    def add_gradient(self, rows: Rows, gradient: Iterable[Tensor | None], *, averaged: bool = False) -> None:
        """Add a gradient built from the rows to ``.grad``, as `backward` does, and update buffers.

        Args:
            rows: The rows of J with respect to every leaf that the losses reach.
            gradient: One entry per leaf of the rows.
            averaged: False if it is this process' share only.
        """
        self.move_buffers()
        sharing, by_backward = self.setup.sharing, self.averaged_by_backward and not self.setup.sharing.one_process
        if not (averaged or by_backward or sharing.one_process):
            shares, count = list(gradient), rows.count
            gradient = [*sharing.mean_direction(shares[:count], rows.leaves[:count]), *shares[count:]]
        deliver(
            rows.leaves, (self._finished(*each, rows, by_backward) for each in zip(rows.leaves, gradient, strict=True))
        )

    def _finished(self, leaf: Tensor, part: Tensor | None, rows: Rows, by_backward: bool) -> Tensor | None:
        """Return the entry for one leaf, times the gradient scaler's factor.

        Where the backward pass averages over processes, exactly the leaves that the graph reaches must get an entry.
        """
        if by_backward and (id(leaf) in rows.reached) != (part is not None):
            return torch.zeros_like(leaf) if part is None else None
        return part if part is None or self.setup.scaler is None else self.setup.scaler.scale(part)

    def only(self, task: int) -> list[Tensor | None]:
        """Return weights that keep only task number `task`."""
        return [torch.ones((), device=self.setup.device) if number == task else None for number in range(self.size)]


class BatchValues(LossValues):
    """The losses of one batch with their graph.

    Args:
        function: The function that was evaluated.
        parts: Its losses, 0-dim each, primary first.
        averaging: How an inner gradient taken from this graph is averaged over processes; None: none is taken.
    """

    def __init__(self, function: LossFunction, parts: tuple[Tensor, ...], *, averaging: Averaging | None) -> None:
        self.function, self.parts, self.setup = function, parts, function.setup
        self._averaging: Averaging | None = averaging
        self._values: Tensor | None = None

    @property
    def values(self) -> Tensor:
        """The losses l, shape (T+1,), detached; the first access averages them over the processes."""
        if self._values is None:
            self._values = self.setup.sharing.mean(self.local_values)
        return self._values

    @property
    def local_values(self) -> Tensor:
        """This process' losses, detached, in float32 at least, shape (T+1,)."""
        return torch.stack([p.detach().float() if p.dtype in LOW_PRECISION else p.detach() for p in self.parts])

    @property
    def size(self) -> int:
        """Number of losses, T+1."""
        return len(self.parts)

    @property
    def averaged_by_backward(self) -> bool:
        """True if the forward pass has prepared the backward pass to average the inner gradient over processes."""
        return self._averaging == "backward"

    def micro_batches(self) -> Iterator[BatchValues]:
        """Yield these losses, which are one batch."""
        yield self

    def functions(self) -> Sequence[LossFunction]:
        """Return the function that was evaluated."""
        return [self.function]

    def run(self, *, graph: bool, precise: bool = False) -> BatchValues:
        """Evaluate once more at the current weights; buffers and generators are restored."""
        return self.function.run(graph=graph, replay=True, keep_buffers=True, precise=precise)

    def backward(self, weights: Tensor, *, beside: BatchValues | None = None) -> None:
        """Add J^T weights to ``.grad`` of every leaf; the graph is freed.

        Args:
            weights: Weights of the losses, shape (T+1,).
            beside: Losses of another batch, weighted alike: their gradient is part of the same backward pass, so that
                hooks are called once, and processes average the sum once.

        Raises:
            ValueError: If no loss depends on a leaf that requires a gradient.
        """
        assert self._averaging is not None
        live, seeds = self._live(list(weights))
        if beside is not None:
            more, weighted = beside._live(list(weights))
            live, seeds = [*live, *more], [*seeds, *weighted]
        if not live:
            raise ValueError("no loss depends on a trainable parameter")
        with self.setup.as_evaluated():
            self.setup.sharing.backward(live, self.setup.scaled(seeds), self._averaging)

    def own_rows(self, parameters: Sequence[Tensor], *, retain: bool, everywhere: bool) -> Rows:
        """Return this process' share of the rows of J by one backward pass per loss (see `rows`)."""
        live = [part for part in self.parts if part.requires_grad]
        reached = reached_leaves(live)
        known = {id(parameter) for parameter in parameters}
        leaves = [*parameters, *(leaf for leaf in reached if everywhere and id(leaf) not in known)]
        kept = [True] * self.size if retain else needed_later(self.parts)
        rows = [self.own_vjp(self.only(task), leaves, retain=kept[task]) for task in range(self.size)]
        return Rows(leaves, len(parameters), rows, frozenset(map(id, reached)))

    def own_vjp(
        self, weights: Sequence[Tensor | None], parameters: Sequence[Tensor], *, retain: bool = True
    ) -> list[Tensor | None]:
        """Return this process' share of J^T weights by one backward pass, which frees the graph unless `retain`.

        Raises:
            LoopError: If a part of the model is checkpointed with ``use_reentrant=True``.
        """
        live, seeds = self._live(weights)
        if not live or not parameters:
            return [None] * len(parameters)
        self._refuse_reentrant(live)
        with self.setup.as_evaluated(), hooks_withheld(parameters):
            own = self.setup.sharing.gradient(live, self.setup.scaled(seeds), parameters, retain=retain)
            return self.setup.unscaled(own)

    def _refuse_reentrant(self, live: Sequence[Tensor]) -> None:
        """Look at the first graphs: torch refuses such a part only if other weights lie below it, else skips it."""
        if self.setup.graphs_to_check > 0:
            self.setup.graphs_to_check -= 1
            if any(node.name() == "CheckpointFunctionBackward" for node in nodes_of(*live)):
                raise LoopError(REENTRANT, NOT_REENTRANT)

    def _live(self, weights: Sequence[Tensor | None]) -> tuple[list[Tensor], list[Tensor]]:
        pairs = [
            (part, weight.to(part))
            for part, weight in zip(self.parts, weights, strict=True)
            if weight is not None and part.requires_grad
        ]
        return [part for part, _ in pairs], [weight for _, weight in pairs]
