"""The task losses of a batch: evaluated with a graph, and as often as wanted again with the same random numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from meltr.hypergradients.graph import needed_later
from meltr.hypergradients.replay import RandomState, preserved_buffers
from meltr.hypergradients.scope import Scope
from meltr.hypergradients.vectors import Direction, add, scale
from meltr.parallel.sharing import Averaging, Compute, Sharing

LOW_PRECISION = (torch.float16, torch.bfloat16)


@dataclass
class Setup:
    """What all evaluations of one training loop have in common.

    Args:
        model: The backbone.
        generators: Generators that losses draw from, besides the global ones.
        autocast: Data type of the autocast context around the losses; None: none.
        scaler: Gradient scaler of float16 training; gradients are taken of scaled losses and unscaled at once.
        sharing: How gradients and numbers are shared between processes.
    """

    model: nn.Module
    generators: Sequence[torch.Generator] = ()
    autocast: torch.dtype | None = None
    scaler: torch.amp.GradScaler | None = None
    sharing: Sharing = field(default_factory=Sharing)

    def __post_init__(self) -> None:
        self.devices = {parameter.device for parameter in self.model.parameters()}
        self.device = next(iter(self.devices), torch.device("cpu"))

    @property
    def low_precision(self) -> bool:
        """True if the losses carry the rounding errors of float16 or bfloat16."""
        return self.autocast is not None or any(p.dtype in LOW_PRECISION for p in self.model.parameters())

    def as_evaluated(self) -> AbstractContextManager[Any]:
        """Return a context in which a backward has the precision of its forward, whatever autocast is around it."""
        return torch.autocast(self.device.type, enabled=False)

    def preserved_buffers(self) -> AbstractContextManager[None]:
        """Return a context that leaves the model's buffers bit-identical."""
        return preserved_buffers(self.model)

    def random_state(self) -> RandomState:
        """Return a snapshot of all generators."""
        return RandomState(self.devices, self.generators)

    def scaled(self, seeds: Sequence[Tensor]) -> list[Tensor]:
        """Return weights of losses times the gradient scaler's factor, if there is one."""
        return list(seeds) if self.scaler is None else [self.scaler.scale(seed) for seed in seeds]

    def unscaled(self, direction: list[Tensor | None]) -> list[Tensor | None]:
        """Take the gradient scaler's factor out of a gradient."""
        return direction if self.scaler is None else scale(direction, 1.0 / self.scaler.get_scale())


class LossFunction:
    """The task losses of one batch as a function of the weights: every evaluation sees the same random numbers.

    Args:
        compute: Returns the losses (see `meltr.hypergradients.replay.Losses`), primary first.
        setup: Model, precision, generators.
        scope: Where the outer step stops: modules below it are not evaluated again.
        math_attention: Run attention on the math kernel, the only one with a second derivative.
        snapshot: False if no second evaluation will be asked for: saves the snapshot of the generators.
    """

    def __init__(
        self,
        compute: Compute,
        setup: Setup,
        *,
        scope: Scope | None = None,
        math_attention: bool = False,
        snapshot: bool = True,
    ) -> None:
        self.setup, self.scope = setup, scope
        self._compute, self._math_attention, self._snapshot = compute, math_attention, snapshot
        self._start: RandomState | None = None

    def call(self, *, inner: bool = False, full_precision: bool = False) -> tuple[Tensor, ...]:
        """Return the losses, 0-dim each, in the precision of the training or in full float32."""
        setup = self.setup
        with ExitStack() as stack:
            if self._math_attention:
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if full_precision:
                stack.enter_context(_no_tf32())
                stack.enter_context(torch.autocast(setup.device.type, enabled=False))
            elif setup.autocast is not None:
                cached = setup.sharing.autocast_cache
                stack.enter_context(torch.autocast(setup.device.type, dtype=setup.autocast, cache_enabled=cached))
            return setup.sharing.evaluate(self._compute, inner=inner)

    @contextmanager
    def replayed(self, *, skip: bool = True, keep_buffers: bool = True) -> Iterator[None]:
        """Within this context the generators start where the first evaluation started; afterwards nothing has moved.

        Args:
            skip: Leave out the modules below the scope.
            keep_buffers: Put buffers (BatchNorm's running statistics) back; False: they move as in any forward.
        """
        if self._start is None:
            raise RuntimeError("this loss function kept no snapshot of the random number generators")
        now = self.setup.random_state()
        self._start.restore()
        skipping = self.scope.skipping(self) if skip and self.scope is not None else nullcontext()
        try:
            with self.setup.preserved_buffers() if keep_buffers else nullcontext(), skipping:
                yield
        finally:
            now.restore()

    def first(self, *, inner: bool) -> LossEvaluation:
        """Evaluate for the first time, with a graph; buffers and generators move as in any forward.

        Args:
            inner: True if the inner gradient will be taken from this graph.
        """
        with torch.enable_grad(), self._recording():
            return LossEvaluation(self, self.call(inner=inner), averaging="backward" if inner else "now")

    def peek(self) -> Tensor:
        """Evaluate for the first time, without a graph; generators move, buffers do not. This process' losses."""
        with torch.no_grad(), self.setup.preserved_buffers():
            self._start = self.setup.random_state()
            return stacked(self.call())

    def fresh(self, *, full_precision: bool = False) -> LossEvaluation:
        """Evaluate once more with a graph, at the weights of now; no trace is left in buffers and generators."""
        with torch.enable_grad(), self.replayed():
            return LossEvaluation(self, self.call(full_precision=full_precision), averaging="now")

    def inner(self, averaging: Averaging) -> LossEvaluation:
        """Evaluate once more with a graph for the inner gradient: like `first`, but with the same random numbers."""
        with torch.enable_grad(), self.replayed(skip=False, keep_buffers=False):
            return LossEvaluation(self, self.call(inner=averaging == "backward"), averaging=averaging)

    def settle(self) -> None:
        """Evaluate once more without a graph and let buffers move as in any forward."""
        with torch.no_grad(), self.replayed(skip=False, keep_buffers=False):
            self.call()

    def again(self, *, full_precision: bool = False) -> Tensor:
        """Evaluate once more without a graph, at the weights of now; losses averaged over processes, (T+1,)."""
        with torch.no_grad(), self.replayed():
            return self.setup.sharing.mean(stacked(self.call(full_precision=full_precision)))

    def _recording(self) -> AbstractContextManager[Any]:
        self._start = self.setup.random_state() if self._snapshot else None
        if self.scope is None or not self._snapshot:
            return nullcontext()
        return self.scope.recording(self, self.setup.random_state)


class Evaluation:
    """Losses at some weights that can be differentiated: of a batch, or of a batch in pieces.

    Attributes:
        values: l, shape (T+1,), detached, the mean over pieces and processes.
        setup: Model, precision, generators.
    """

    values: Tensor
    setup: Setup
    keeps_graph = True
    """False if every piece is evaluated anew for the next gradient: a backward then frees its graph as it goes."""

    @property
    def size(self) -> int:
        """Number of losses, T+1."""
        return len(self.values)

    def pieces(self) -> Iterator[LossEvaluation]:
        """Yield the evaluations whose mean this is, each with its graph; only one need be alive at a time."""
        raise AssertionError("specification only")

    def functions(self) -> Sequence[LossFunction]:
        """Return the loss functions whose mean this is."""
        raise AssertionError("specification only")

    def again(self, *, full_precision: bool = False) -> Tensor:
        """Evaluate once more without a graph, at the weights of now, shape (T+1,)."""
        raise AssertionError("specification only")

    def fresh(self, *, full_precision: bool = False) -> Evaluation:
        """Evaluate once more with a graph, at the weights of now."""
        raise AssertionError("specification only")

    def inner_backward(self, weights: Tensor, parameters: Sequence[Tensor]) -> None:
        """Add J^T weights to ``.grad``, averaged over processes, times the gradient scaler's factor.

        Raises:
            ValueError: If no loss depends on a parameter.
        """
        raise AssertionError("specification only")

    def settle(self) -> None:
        """Let buffers move as in an ordinary step, where no `inner_backward` does it."""

    def share(self, weights: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> Direction:
        """Return this process' share of J^T weights by one backward a piece; it can be asked for again.

        Args:
            weights: One 0-dim tensor a loss; None leaves the loss out.
            parameters: What to differentiate by; unused ones get None.
        """
        total: Direction | None = None
        for piece in self.pieces():
            own = piece.own_share(weights, parameters, retain=self.keeps_graph)
            del piece  # and its graph, before the next one is made
            total = own if total is None else add(total, own)
        assert total is not None
        count = len(self.functions())
        return total if count == 1 else scale(total, 1 / count)

    def rows(self, parameters: Sequence[Tensor], *, retain: bool) -> list[list[Tensor | None]]:
        """Return this process' share of the rows of J, the gradients of all losses, by one backward a loss and piece.

        Args:
            parameters: What to differentiate by; unused ones get None.
            retain: Keep the graph; otherwise each part of it is freed by the last backward that needs it.
        """
        total: list[list[Tensor | None]] | None = None
        for piece in self.pieces():
            own = piece.own_rows(parameters, retain=retain and self.keeps_graph)
            del piece  # and its graph, before the next one is made
            total = own if total is None else [add(a, b) for a, b in zip(total, own, strict=True)]
        assert total is not None
        count = len(self.functions())
        return total if count == 1 else [scale(row, 1 / count) for row in total]

    def gradient(self, weights: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> Direction:
        """Return J^T weights, averaged over processes; see `share`."""
        return self.setup.sharing.mean_direction(self.share(weights, parameters), parameters)

    def only(self, task: int) -> list[Tensor | None]:
        """Return the weights that leave in task number `task` alone."""
        one = torch.ones((), dtype=self.values.dtype, device=self.values.device)
        return [one if number == task else None for number in range(self.size)]


class LossEvaluation(Evaluation):
    """The losses of one batch with their graph.

    Args:
        function: What was evaluated.
        parts: Its losses, 0-dim each, primary first.
        averaging: Who averages the inner gradient over processes.
    """

    def __init__(self, function: LossFunction, parts: tuple[Tensor, ...], *, averaging: Averaging) -> None:
        self.function, self.parts, self.setup = function, parts, function.setup
        self.values = self.setup.sharing.mean(stacked(parts))
        self._averaging: Averaging = averaging

    def pieces(self) -> Iterator[LossEvaluation]:
        """Yield this evaluation."""
        yield self

    def functions(self) -> Sequence[LossFunction]:
        """Return the function that was evaluated."""
        return [self.function]

    def again(self, *, full_precision: bool = False) -> Tensor:
        """Evaluate once more without a graph, at the weights of now, shape (T+1,)."""
        return self.function.again(full_precision=full_precision)

    def fresh(self, *, full_precision: bool = False) -> LossEvaluation:
        """Evaluate once more with a graph, at the weights of now."""
        return self.function.fresh(full_precision=full_precision)

    def inner_backward(self, weights: Tensor, parameters: Sequence[Tensor]) -> None:
        """Add J^T weights to ``.grad``; the graph is freed.

        Raises:
            ValueError: If no loss depends on a parameter.
        """
        live, seeds = self._live(list(weights))
        if not live:
            raise ValueError("no loss depends on a trainable parameter")
        with self.setup.as_evaluated():
            self.setup.sharing.inner_backward(live, self.setup.scaled(seeds), parameters, self._averaging)

    def own_rows(self, parameters: Sequence[Tensor], *, retain: bool) -> list[list[Tensor | None]]:
        """Return this process' share of the rows of J by one backward a loss (see `rows`)."""
        kept = [True] * self.size if retain else needed_later(self.parts)
        return [self.own_share(self.only(task), parameters, retain=kept[task]) for task in range(self.size)]

    def own_share(
        self, weights: Sequence[Tensor | None], parameters: Sequence[Tensor], *, retain: bool = True
    ) -> list[Tensor | None]:
        """Return this process' share of J^T weights by one backward, which frees the graph unless `retain`."""
        live, seeds = self._live(weights)
        if not live:
            return [None] * len(parameters)
        with self.setup.as_evaluated():
            own = self.setup.sharing.gradient(live, self.setup.scaled(seeds), parameters, retain=retain)
            return self.setup.unscaled(own)

    def _live(self, weights: Sequence[Tensor | None]) -> tuple[list[Tensor], list[Tensor]]:
        pairs = [
            (part, weight.to(part))
            for part, weight in zip(self.parts, weights, strict=True)
            if weight is not None and part.requires_grad
        ]
        return [part for part, _ in pairs], [weight for _, weight in pairs]


class SplitEvaluation(Evaluation):
    """The losses of a batch in pieces that do not fit into memory together: gradient accumulation.

    The losses of the batch are the means over its pieces, and m is not linear: so all pieces are first evaluated
    without a graph, the combiner sees the means, and every piece is evaluated with its graph whenever a gradient is
    wanted. One piece's graph is alive at a time, and none beside a whole gradient. A single piece can be evaluated like
    that too, to save memory: its first graph then serves the first gradient.

    Args:
        functions: The loss function of every piece, each evaluated before.
        values: Their mean over pieces and processes, shape (T+1,).
        full_precision: Evaluate in full float32.
        ready: The only piece with its graph, for the first gradient.
    """

    keeps_graph = False

    def __init__(
        self,
        functions: Sequence[LossFunction],
        values: Tensor,
        *,
        full_precision: bool = False,
        ready: LossEvaluation | None = None,
    ) -> None:
        self.setup, self.values = functions[0].setup, values
        self._functions, self._full_precision, self._ready = functions, full_precision, ready

    @classmethod
    def first(cls, functions: Sequence[LossFunction]) -> SplitEvaluation:
        """Evaluate pieces for the first time, several without a graph; generators move, buffers do not.

        Raises:
            ValueError: If there are no pieces.
        """
        if not functions:
            raise ValueError("no loss function: expected one, or one for every piece of the batch")
        if len(functions) == 1:
            with functions[0].setup.preserved_buffers():
                ready = functions[0].first(inner=False)
            return cls(functions, ready.values, ready=ready)
        local = torch.stack([function.peek() for function in functions]).mean(0)
        return cls(functions, functions[0].setup.sharing.mean(local))

    def pieces(self) -> Iterator[LossEvaluation]:
        """Yield every piece, evaluated anew with its graph."""
        ready, self._ready = self._ready, None
        if ready is not None:
            yield ready
            return
        for function in self._functions:
            yield function.fresh(full_precision=self._full_precision)

    def functions(self) -> Sequence[LossFunction]:
        """Return the loss functions of the pieces."""
        return self._functions

    def again(self, *, full_precision: bool = False) -> Tensor:
        """Evaluate all pieces once more without a graph, at the weights of now, shape (T+1,)."""
        return torch.stack([function.again(full_precision=full_precision) for function in self._functions]).mean(0)

    def fresh(self, *, full_precision: bool = False) -> SplitEvaluation:
        """Return the same pieces at the weights of now."""
        values = self.again(full_precision=full_precision)
        return SplitEvaluation(self._functions, values, full_precision=full_precision)

    def inner_backward(self, weights: Tensor, parameters: Sequence[Tensor]) -> None:
        """Add J^T weights to ``.grad``, piece by piece; buffers move as in ordinary training.

        Raises:
            ValueError: If no loss depends on a parameter.
        """
        self._ready = None
        last = len(self._functions) - 1
        for number, function in enumerate(self._functions):
            piece = function.inner("backward" if number == last else "later")
            piece.inner_backward(weights / len(self._functions), parameters)

    def settle(self) -> None:
        """Let buffers move as in an ordinary step: a forward of every piece, if the model has buffers."""
        if any(True for _ in self.setup.model.buffers()):
            for function in self._functions:
                function.settle()


def stacked(parts: Sequence[Tensor]) -> Tensor:
    """Return losses as a detached vector of shape (T+1,), in float32 at least."""
    return torch.stack([p.detach().float() if p.dtype in LOW_PRECISION else p.detach() for p in parts])


@contextmanager
def _no_tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
